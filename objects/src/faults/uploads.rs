//! The faults of uploads in parts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, PutPayload, PutResult, Result};

use super::{FaultyStore, Kind, TORN, hits};
use crate::failure::Injected;

#[async_trait]
impl MultipartStore for FaultyStore {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        let plan = self.plan(Kind::Write, path.as_ref());
        let (uploads, to) = (self.uploads()?, path.clone());
        let id = self.write(plan, path, async move { uploads.create_multipart(&to).await }).await?;
        let torn = {
            let faults = self.0.faults.lock();
            path.as_ref().contains(&faults.only_paths_with) && hits(&self.0.env, faults.torn_upload)
        };
        if torn {
            self.0.counts[TORN].fetch_add(1, Ordering::Relaxed);
            self.0.torn.lock().insert(id.clone(), self.0.env.random_below(4));
        }
        Ok(id)
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, index: usize, data: PutPayload) -> Result<PartId> {
        let plan = self.plan(Kind::Write, path.as_ref());
        self.still_known(path, id)?;
        let (uploads, to, id) = (self.uploads()?, path.clone(), id.clone());
        self.write(plan, path, async move { uploads.put_part(&to, &id, index, data).await }).await
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let plan = self.plan(Kind::Complete, path.as_ref());
        self.still_known(path, id)?;
        let (uploads, to, id) = (self.uploads()?, path.clone(), id.clone());
        self.write(plan, path, async move { uploads.complete_multipart(&to, &id, parts).await }).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        let plan = self.plan(Kind::Write, path.as_ref());
        self.0.torn.lock().remove(id);
        let (uploads, to, id) = (self.uploads()?, path.clone(), id.clone());
        self.write(plan, path, async move { uploads.abort_multipart(&to, &id).await }).await
    }
}

impl FaultyStore {
    fn uploads(&self) -> Result<Arc<dyn MultipartStore>> {
        self.0.uploads.clone().ok_or_else(|| object_store::Error::NotImplemented {
            operation: "uploads in parts".into(),
            implementer: "a store with faults around one without them".into(),
        })
    }

    /// Refuses what belongs to an upload that is torn by now.
    fn still_known(&self, path: &Path, id: &MultipartId) -> Result<()> {
        match self.0.torn.lock().get_mut(id) {
            Some(0) => {
                Err(object_store::Error::NotFound { path: path.to_string(), source: Box::new(Injected::NoSuchUpload) })
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}
