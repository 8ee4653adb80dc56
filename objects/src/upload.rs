//! Big bodies in parts.
//!
//! Order of events: begin the upload; send its parts, four at a time, each repeated on its own until the retry time-out;
//! complete it. Completing is repeated, too, and since its reply may be lost the object is looked at after each failure:
//! names are used once, so an object of the right size is this one. When the store no longer knows the upload and there is
//! no such object, the upload begins anew, as long as the retry time-out lasts. Whatever fails is aborted, in one attempt.
//!
//! The parts are views of the body: no byte is copied, and nothing is held but the body. What is left behind when a process
//! dies in the middle, or a reply to the beginning is lost, is an upload without an object, which a life-cycle rule of the
//! bucket removes (docs/object-stores.md).

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use millstream_common::{Error, Result};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, PutPayload};

use crate::attempt::{Backend, Reply};
use crate::failure::Failure;
use crate::meter::{Operation, Purpose};
use crate::store::{Store, boxed};

/// Parts of one upload that are on their way at once.
const PARTS_AT_ONCE: usize = 4;

/// What is uploaded, and where to.
pub(crate) struct Upload<'a> {
    /// The name of the object below the store's prefix, its whole URL, and its name in the bucket.
    pub(crate) path: &'a str,
    pub(crate) at: &'a str,
    pub(crate) location: &'a Path,
    pub(crate) bytes: u64,
    pub(crate) purpose: Purpose,
}

/// What became of a try.
enum Try {
    Done,
    /// The store does not know this upload, and there is no object.
    Lost,
}

impl Store {
    /// Writes `body` in parts.
    pub(crate) async fn upload(
        &self,
        uploads: &Arc<dyn MultipartStore>,
        upload: Upload<'_>,
        body: Vec<Bytes>,
    ) -> Result<()> {
        let parts = in_parts(body, self.backend.options.multipart_part_bytes);
        let start = self.backend.env.now();
        let mut tries = 1;
        while let Try::Lost = self.try_upload(uploads, &upload, &parts).await? {
            if self.backend.env.now().since(start) >= self.backend.options.retry_timeout {
                return Err(Error::unavailable(format!(
                    "the object store forgot {tries} uploads before they were complete"
                ))
                .code(2302)
                .at(upload.at)
                .next("look for a life-cycle rule of the bucket that aborts uploads too early")
                .maybe_applied());
            }
            self.meter().count_retry();
            self.backend.pause(tries).await;
            tries += 1;
        }
        Ok(())
    }

    async fn try_upload(
        &self,
        uploads: &Arc<dyn MultipartStore>,
        upload: &Upload<'_>,
        parts: &[PutPayload],
    ) -> Result<Try> {
        let request = self.request(Operation::Put, upload.purpose, upload.at, 0);
        let attempt = || {
            let (uploads, backend, to) = (uploads.clone(), self.backend.clone(), upload.location.clone());
            boxed(async move {
                let begin = uploads.create_multipart(&to);
                Backend::in_time(&backend.env, backend.options.request_timeout, 0, begin).await
            })
        };
        let id = Arc::new(self.done(self.backend.repeat(request, attempt).await?, upload.at)?);
        let sent = stream::iter(0..parts.len())
            .map(|index| self.send_part(uploads, upload, &id, index, &parts[index]))
            .buffered(PARTS_AT_ONCE)
            .try_collect::<Vec<_>>()
            .await;
        let outcome = match sent {
            Ok(sent) => match sent.into_iter().collect::<Option<Vec<PartId>>>() {
                Some(sent) => self.complete(uploads, upload, &id, &sent).await,
                None => Ok(Try::Lost),
            },
            Err(e) => Err(e),
        };
        if !matches!(outcome, Ok(Try::Done)) {
            self.abort(uploads, upload, &id).await;
        }
        outcome
    }

    /// Sends one part; `None` when the store does not know the upload.
    async fn send_part(
        &self,
        uploads: &Arc<dyn MultipartStore>,
        upload: &Upload<'_>,
        id: &Arc<MultipartId>,
        index: usize,
        part: &PutPayload,
    ) -> Result<Option<PartId>> {
        let bytes = part.content_length() as u64;
        let request = self.request(Operation::Put, upload.purpose, upload.at, bytes);
        let attempt = || {
            let (uploads, backend, to) = (uploads.clone(), self.backend.clone(), upload.location.clone());
            let (id, part) = (id.clone(), part.clone());
            boxed(async move {
                let put = uploads.put_part(&to, &id, index, part);
                Backend::in_time(&backend.env, backend.options.request_timeout, bytes, put).await
            })
        };
        match self.backend.repeat(request, attempt).await? {
            Reply::Absent => Ok(None),
            reply => self.done(reply, upload.at).map(Some),
        }
    }

    /// Completes an upload whose parts were all confirmed, whatever happens to the replies.
    async fn complete(
        &self,
        uploads: &Arc<dyn MultipartStore>,
        upload: &Upload<'_>,
        id: &Arc<MultipartId>,
        parts: &[PartId],
    ) -> Result<Try> {
        let start = self.backend.env.now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let attempt = {
                let (uploads, backend, to) = (uploads.clone(), self.backend.clone(), upload.location.clone());
                let (id, parts) = (id.clone(), parts.to_vec());
                boxed(async move {
                    let complete = uploads.complete_multipart(&to, &id, parts);
                    Backend::in_time(&backend.env, backend.options.request_timeout, 0, complete).await
                })
            };
            let request = self.request(Operation::Put, upload.purpose, upload.at, 0);
            let failure = match self.backend.once(request, attempt).await {
                Ok(_) => return Ok(Try::Done),
                Err(failure) => failure,
            };
            // An earlier attempt may have done it, or this one.
            if self.size(upload.path, upload.purpose).await.map_err(Error::maybe_applied)? == Some(upload.bytes) {
                return Ok(Try::Done);
            }
            let trouble = match failure {
                Failure::Again(trouble) => trouble,
                Failure::Absent | Failure::Exists | Failure::BeyondEnd(_) => return Ok(Try::Lost),
                Failure::Final(e) => return Err(e.at(upload.at).maybe_applied()),
            };
            let waited = self.backend.env.now().since(start);
            if waited >= self.backend.options.retry_timeout {
                return Err(self.backend.gave_up(request, attempts, waited, &trouble, true));
            }
            self.meter().count_retry();
            self.backend.pause(attempts).await;
        }
    }

    /// Tells the store to forget an upload. That it fails is no new trouble: who called has an error already, or begins
    /// anew.
    async fn abort(&self, uploads: &Arc<dyn MultipartStore>, upload: &Upload<'_>, id: &Arc<MultipartId>) {
        let (uploads, backend, to) = (uploads.clone(), self.backend.clone(), upload.location.clone());
        let id = id.clone();
        let request = self.request(Operation::Delete, upload.purpose, upload.at, 0);
        let attempt = boxed(async move {
            let abort = uploads.abort_multipart(&to, &id);
            Backend::in_time(&backend.env, backend.options.request_timeout, 0, abort).await
        });
        if self.backend.once(request, attempt).await.is_err() {
            tracing::debug!(
                at = upload.at,
                "an upload could not be aborted: the bucket's life-cycle rule has to remove it"
            );
        }
    }
}

/// `body` as payloads of `part_bytes` each, the last one of what is left.
fn in_parts(body: Vec<Bytes>, part_bytes: u64) -> Vec<PutPayload> {
    let part_bytes = usize::try_from(part_bytes).unwrap_or(usize::MAX);
    let (mut parts, mut part, mut room) = (Vec::new(), Vec::new(), part_bytes);
    for mut chunk in body {
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(room));
            room -= piece.len();
            part.push(piece);
            if room == 0 {
                parts.push(std::mem::take(&mut part).into_iter().collect());
                room = part_bytes;
            }
        }
    }
    if !part.is_empty() {
        parts.push(part.into_iter().collect());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_cut_into_parts_of_one_size_without_a_copy() {
        let body: Vec<Bytes> = vec![Bytes::from(vec![1; 7]), Bytes::new(), Bytes::from(vec![2; 10])];
        let sizes = |bytes| in_parts(body.clone(), bytes).iter().map(PutPayload::content_length).collect::<Vec<_>>();
        assert_eq!(sizes(5), [5, 5, 5, 2]);
        assert_eq!(sizes(17), [17]);
        assert_eq!(sizes(100), [17]);
        let whole: Vec<u8> = in_parts(body.clone(), 5).into_iter().flatten().flatten().collect();
        assert_eq!(whole, body.concat());
        let first: Vec<Bytes> = in_parts(body.clone(), 5).remove(0).into_iter().collect();
        assert_eq!(first[0].as_ptr(), body[0].as_ptr());
    }
}
