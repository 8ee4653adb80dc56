//! Bytes that a sink keeps in the job's object store as long as a version lists them.
//!
//! Their names are those of state objects: with the deployment that wrote them, so that whatever no version ever lists is
//! collected once that deployment is over (docs/garbage.md). What a version lists stays as long as that version does.

use bytes::Bytes;
use millstream_common::{Env, Error, Execution, Generation, Result};
use millstream_objects::{Purpose, Store};
use millstream_state_store::{WriterName, object_path};

/// An object that a sink keeps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeptObject {
    /// Its name below the job's `data/`.
    pub object: String,
    /// Its size.
    pub bytes: u64,
}

/// The job's object store, as far as a sink may use it. Cheap to clone.
#[derive(Clone)]
pub struct SinkObjects {
    env: Env,
    store: Store,
    writer: WriterName,
}

impl std::fmt::Debug for SinkObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SinkObjects").field("store", &self.store.url()).finish_non_exhaustive()
    }
}

impl SinkObjects {
    /// `store`: the job's place; the deployment that writes.
    #[must_use]
    pub fn new(env: Env, store: Store, generation: Generation, execution: Execution) -> Self {
        Self { env, store, writer: WriterName { generation, execution } }
    }

    /// Writes an object. It is to be named in [`PreCommit::kept`](super::PreCommit::kept), or nobody will know of it.
    pub async fn put(&self, body: Bytes) -> Result<KeptObject> {
        let object = self.writer.object("o", &self.env.unique_id());
        let bytes = body.len() as u64;
        self.store.put(&object_path(&object), vec![body], Purpose::Output).await?;
        Ok(KeptObject { object, bytes })
    }

    /// Reads it back; whole, or an error.
    pub async fn get(&self, kept: &KeptObject) -> Result<Bytes> {
        let path = object_path(&kept.object);
        let broken = |what: String| Error::corrupt(what).code(4331).at(self.store.url());
        let body = self.store.get(&path, Purpose::Output).await?;
        let body = body.ok_or_else(|| broken(format!("a version lists {path}, and it is not there")))?;
        if body.len() as u64 != kept.bytes {
            return Err(broken(format!("{path} has {} bytes instead of {}", body.len(), kept.bytes)));
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use millstream_objects::{StoreEnvironment, StoreOptions};
    use millstream_proto::version::{self, VersionRecord};
    use millstream_state_store::version::garbage::{Chain, OpenCompactions, compaction_of, is_over, objects_of};

    use super::*;

    #[tokio::test]
    async fn what_a_version_lists_stays_and_what_none_lists_goes_with_its_deployment() {
        let env = Env::test(7);
        let store = Store::open("memory://", &StoreOptions::default(), &StoreEnvironment::new(), &env).unwrap();
        let objects = SinkObjects::new(env, store.clone(), Generation(3), Execution(5));
        let kept = objects.put(Bytes::from_static(b"rows")).await.unwrap();
        assert_eq!(objects.get(&kept).await.unwrap(), "rows");
        let other = KeptObject { bytes: 5, ..kept.clone() };
        assert_eq!(objects.get(&other).await.unwrap_err().number(), 4331);
        store.delete_all(&[object_path(&kept.object)], Purpose::Output).await.unwrap();
        assert_eq!(objects.get(&kept).await.unwrap_err().number(), 4331);

        let none = OpenCompactions::default();
        assert_eq!(compaction_of(&kept.object), None);
        assert!(!is_over(&kept.object, (3, 5), &none) && is_over(&kept.object, (3, 6), &none));
        let listed = version::KeptObject { object: kept.object.clone(), bytes: kept.bytes };
        let committables = vec![version::Committable { kept: vec![listed], ..version::Committable::default() }];
        let with = VersionRecord { number: 8, committables, ..VersionRecord::default() };
        let without = VersionRecord { number: 9, ..VersionRecord::default() };
        assert_eq!(objects_of(&with), BTreeSet::from([kept.object.clone()]));
        let mut chain = Chain::default();
        chain.add(&with);
        chain.add(&without);
        assert!(chain.knows(&kept.object) && chain.dead_objects(8, &BTreeSet::new()).is_empty());
        let dead = chain.dead_objects(9, &BTreeSet::new());
        assert_eq!(dead, [(kept.object.as_str().into(), 4)]);
        assert!(chain.dead_objects(9, &objects_of(&with)).is_empty(), "somebody holds that version");
    }
}
