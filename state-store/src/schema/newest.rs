//! Values of any schema that a state has had, as values of the newest.

use millstream_common::{Error, Result};

use super::{Schema, UNTAGGED, Upgrade, damaged, split_tag};

/// All schemas of a state, ready to read values with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// From each older schema to the next one.
    upgrades: Vec<Upgrade>,
}

/// Room for values that are being upgraded, to be used again.
#[derive(Debug, Default)]
pub struct UpgradeBuffers(Vec<u8>, Vec<u8>);

impl Newest {
    /// `history`: oldest first; without any, the state never had another one.
    pub fn new(history: &[Schema]) -> Result<Self> {
        let upgrade = |w: &[Schema]| {
            Upgrade::new(&w[0], &w[1])
                .map_err(|why| Error::corrupt(format!("schemas that do not follow each other: {why}")).code(4005))
        };
        Ok(Self { upgrades: history.windows(2).map(upgrade).collect::<Result<_>>()? })
    }

    /// The number of the newest schema, from 1.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u32 {
        self.upgrades.len() as u32 + UNTAGGED
    }

    /// The value in the form of the newest schema, without its tag. `old`: whether it had to be upgraded.
    #[inline]
    pub fn read<'b>(&self, bytes: &'b [u8], buffers: &'b mut UpgradeBuffers) -> Result<(&'b [u8], bool)> {
        if self.upgrades.is_empty() {
            return Ok((bytes, false));
        }
        let (version, rest) = split_tag(bytes);
        if version == self.version() { Ok((rest, false)) } else { Ok((self.upgrade(version, rest, buffers)?, true)) }
    }

    #[cold]
    fn upgrade<'b>(&self, version: u32, bytes: &[u8], buffers: &'b mut UpgradeBuffers) -> Result<&'b [u8]> {
        if version < UNTAGGED || version > self.version() {
            return Err(damaged(&format!("it has schema {version}, known are 1 to {}", self.version())));
        }
        let UpgradeBuffers(old, new) = buffers;
        old.clear();
        old.extend_from_slice(bytes);
        for upgrade in &self.upgrades[(version - UNTAGGED) as usize..] {
            new.clear();
            upgrade.apply(old, new)?;
            std::mem::swap(old, new);
        }
        Ok(old)
    }
}
