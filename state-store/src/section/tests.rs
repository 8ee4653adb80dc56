use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_cache::CacheBlock;
use millstream_common::{Epoch, ErrorKind, KeyGroupRanges};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::entry::{EntryRef, Expiry, ends_chain};
use crate::golden::Golden;
use crate::key::state_of;
use crate::testing::*;

fn bytes_of(section: &EncodedSection) -> Vec<u8> {
    section.pieces.concat()
}

/// What the version says of where the index stands.
#[derive(Clone, Copy)]
struct Place {
    meta_offset: usize,
    directory_length: usize,
    checksum: u32,
}

fn place(section: &EncodedSection) -> Place {
    let EncodedSection { meta_offset, directory_length, checksum, .. } = *section;
    Place { meta_offset: meta_offset as usize, directory_length: directory_length as usize, checksum }
}

/// The directory and parts of a section, read back from its bytes.
fn index_of(stored: &[u8], place: Place) -> (Directory, Vec<Part>) {
    let directory = Directory::decode(&stored[stored.len() - place.directory_length..], place.checksum).unwrap();
    let part = |info: &PartInfo| {
        let start = place.meta_offset + info.at as usize;
        Part::decode(&stored[start..start + info.length as usize], info).unwrap()
    };
    let parts = directory.parts().iter().map(part).collect();
    (directory, parts)
}

/// All entries of a section, read back from its bytes: key to entries, newest first.
fn read_back(stored: &[u8], place: Place) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut all: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    let (directory, parts) = index_of(stored, place);
    for (part, of) in parts.iter().zip(directory.parts()) {
        assert_eq!((part.first_key(), part.last_key()), (of.first_key.as_slice(), of.last_key.as_slice()));
        assert_eq!(part.blocks().iter().map(|b| u64::from(b.entries)).sum::<u64>(), of.entries);
        for (i, info) in part.blocks().iter().enumerate() {
            let bytes = &stored[info.offset as usize..][..info.length as usize];
            let block = decode_stored(bytes, info.checksum, BlockForm::Walked).unwrap();
            assert_eq!(block.len(), info.entries as usize);
            let block = block.indexed();
            for e in 0..block.len() {
                let key = [block.prefix(), block.suffix(e)].concat();
                assert!(part.compare_first(i, &key).is_le() && of.first_key <= key && key <= of.last_key);
                let hash = millstream_common::hash::stable_hash(&key);
                assert!(part.filter().may_hold(hash));
                if state_of(&key) == Some(MAP) {
                    // The part's own filter, also of a key whose entries began in the part before.
                    let prefix = &key[..crate::key::map_prefix_len(&key).unwrap()];
                    assert!(part.filter().may_hold(millstream_common::hash::stable_hash(prefix)));
                }
                for from in [0, i / 2, i.saturating_sub(17), i.saturating_sub(16), i] {
                    assert_eq!(part.seek(from, &key), i);
                }
                let first = block.lower_bound(0, &key);
                assert!(block.is_key(first, &key));
                assert_eq!(block.find(hash, &key), Some(first));
                all.entry(key).or_default().push(block.entry(e).to_vec());
            }
        }
    }
    all
}

fn random_section(seed: u64, keys: usize) -> (EncodedSection, BTreeMap<Vec<u8>, Vec<Vec<u8>>>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut options = SectionOptions {
        block_bytes: rng.random_range(1..400),
        part_bytes: rng.random_range(1..5000),
        keep_blocks_bytes: 1000,
        ..SectionOptions::default()
    };
    match rng.random_range(0..3) {
        0 => options = options.bottom(),
        1 => options.compression = Compression::None,
        _ => {}
    }
    let mut writer = SectionWriter::new(TASK);
    let mut expected: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for _ in 0..keys * 2 {
        let name = format!("key {}", rng.random_range(0..keys)).into_bytes();
        let key = match rng.random_range(0..4) {
            0 => point(POINT, &name),
            1 => timed(rng.random_range(-3..3), &name),
            2 => mapped([&b"\0"[..], b"a", b"a\0"][rng.random_range(0..3)], &name[4..]),
            _ => point(SUMS, &name),
        };
        let value = vec![7; rng.random_range(0..60)];
        let expiry = if rng.random() { Expiry::Never } else { Expiry::ProcessingTime(5) };
        let entry = match rng.random_range(0..4) {
            0 => EntryRef::Delete,
            1 if state_of(&key) == Some(SUMS) => EntryRef::Merge { operand: &value, written_ms: 3, expiry },
            _ => EntryRef::Put { value: &value, expiry },
        };
        writer.add(&key, &entry);
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        expected.entry(key.to_vec()).or_default().insert(0, bytes);
    }
    for chain in expected.values_mut() {
        let end = chain.iter().position(|e| ends_chain(e)).map_or(chain.len(), |i| i + 1);
        chain.truncate(end);
    }
    assert!(!writer.is_empty() && writer.entries() == keys * 2 && writer.memory_bytes() > 0);
    let section = writer.encode(&options, &layouts(), KeyGroupRanges::all(), Interval::of(Epoch(1), 0)).unwrap();
    (section, expected)
}

#[test]
fn what_was_written_is_read() {
    for seed in 0..60 {
        let (section, expected) = random_section(seed, 1 + seed as usize * 3);
        let bytes = bytes_of(&section);
        assert_eq!((bytes.len() as u64, crc32c::crc32c(&bytes)), (section.length, section.checksum));
        assert_eq!(read_back(&bytes, place(&section)), expected);
        assert_eq!(section.entries(), expected.values().map(|c| c.len() as u64).sum::<u64>());
        let by_state: u64 = section.directory.states().iter().map(|s| s.entries).sum();
        assert_eq!(by_state, section.entries());
        assert!(section.directory.states().iter().all(|s| s.times.is_some() == (s.state == TIMED)));
        for (offset, body) in &section.kept_blocks {
            let mut blocks = section.parts.iter().flat_map(|p| p.blocks());
            let info = blocks.find(|b| b.offset == *offset).unwrap();
            let stored = &bytes[*offset as usize..][..info.length as usize];
            assert_eq!(
                SharedBlock::from(decode_stored(stored, info.checksum, BlockForm::Searched).unwrap()).body(),
                body
            );
        }
    }
}

#[test]
fn an_empty_section_is_a_section() {
    let section = SectionBuilder::new(TASK, &SectionOptions::default(), &layouts())
        .finish(KeyGroupRanges::all(), Interval::of(Epoch(1), 0));
    let bytes = bytes_of(&section);
    assert!(read_back(&bytes, place(&section)).is_empty());
}

#[test]
fn a_large_section_is_cut_into_pieces() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut writer = SectionWriter::new(TASK);
    let mut expected = BTreeMap::new();
    for i in 0..4000 {
        let value: Vec<u8> = (0..rng.random_range(0..2000)).map(|_| rng.random()).collect();
        let key = point(POINT, format!("{i}").as_bytes());
        writer.put(&key, &value, Expiry::Never);
        let mut entry = Vec::new();
        EntryRef::Put { value: &value, expiry: Expiry::Never }.encode(&mut entry);
        expected.insert(key.to_vec(), vec![entry]);
    }
    let section =
        writer.encode(&SectionOptions::default(), &layouts(), KeyGroupRanges::all(), Interval::default()).unwrap();
    assert!(section.pieces.len() > 2);
    assert!((200 << 10..=256 << 10).contains(&section.kept_bytes()), "as much as was to be kept");
    let bytes = bytes_of(&section);
    assert_eq!(read_back(&bytes, place(&section)), expected);
}

#[test]
fn blocks_and_parts_are_found_by_keys_that_are_not_there() {
    let (section, expected) = random_section(5, 300);
    let (_, parts) = index_of(&bytes_of(&section), place(&section));
    let keys: Vec<&Vec<u8>> = expected.keys().collect();
    for probe in keys.iter().flat_map(|k| [[&k[..], &[0]].concat(), k[..k.len() - 1].to_vec()]) {
        for part in &parts {
            let i = part.seek(0, &probe);
            assert!(i == 0 || part.compare_first(i, &probe).is_le());
            assert!(i + 1 == part.blocks().len() || part.compare_first(i + 1, &probe).is_gt(), "{i} {probe:?}");
        }
    }
}

#[test]
fn entries_out_of_order_are_refused() {
    let mut builder = SectionBuilder::new(TASK, &SectionOptions::default(), &layouts());
    builder.add(&point(POINT, b"a"), &[2]).unwrap();
    let lower = crate::key::state_start(POINT);
    assert!(builder.add(&[&lower[..], &[0, 0]].concat(), &[2]).is_err() || builder.entries() == 2);
    assert!(builder.add(&point(crate::testing::LISTS, b"a"), &[2]).is_ok());
    assert!(builder.add(&point(POINT, b"a"), &[2]).is_err());
    assert!(builder.add(&point(millstream_common::StateId(77), b"a"), &[2]).is_err(), "a state without a layout");
}

#[test]
fn a_filter_holds_the_prefix_of_a_key_of_a_map_once() {
    for (keys, entries, hashes) in [(1, 5000, 5001), (100, 50, 5100), (5000, 1, 10_000)] {
        let mut writer = SectionWriter::new(TASK);
        for i in 0..keys * entries {
            writer.put(
                &mapped(&[1, ((i / entries) >> 8) as u8, (i / entries) as u8], &[i as u8, (i >> 8) as u8, 1]),
                b"",
                Expiry::Never,
            );
        }
        let section =
            writer.encode(&SectionOptions::default(), &layouts(), KeyGroupRanges::all(), Interval::default()).unwrap();
        let [part] = &section.parts[..] else { panic!("{}", section.parts.len()) };
        // 16 bits each, in lines of 512.
        assert_eq!(part.filter().memory_bytes(), (hashes * 16_usize).div_ceil(512) * 64, "{keys} {entries}");
    }
}

#[test]
fn a_key_of_a_map_without_end_is_refused() {
    let mut builder = SectionBuilder::new(TASK, &SectionOptions::default(), &layouts());
    assert_eq!(builder.add(&[0, 4, 0, 9, 7, 7], &[2]).unwrap_err().number(), 9204);
}

#[test]
fn damaged_sections_are_errors() {
    let (section, _) = random_section(7, 40);
    let bytes = bytes_of(&section);
    let meta = &bytes[section.meta_offset as usize..];
    let directory = &bytes[bytes.len() - section.directory_length as usize..];
    let corrupt = |r: millstream_common::Result<()>| assert_eq!(r.unwrap_err().kind(), ErrorKind::Corrupt);
    for cut in 0..directory.len() {
        corrupt(Directory::decode(&directory[..cut], section.checksum).map(drop));
    }
    for at in 0..directory.len() {
        let mut damaged = directory.to_vec();
        damaged[at] ^= 1 << (at % 8);
        corrupt(Directory::decode(&damaged, section.checksum).map(drop));
    }
    // Another section's directory is whole, and still not this one's.
    let (other, _) = random_section(8, 40);
    let other_bytes = bytes_of(&other);
    let other_directory = &other_bytes[other_bytes.len() - other.directory_length as usize..];
    let error = Directory::decode(other_directory, section.checksum).unwrap_err();
    assert!(error.what().contains("checksum"), "{error}");

    let part = &section.directory.parts()[0];
    let stored = &meta[part.at as usize..][..part.length as usize];
    for cut in 0..stored.len() {
        corrupt(Part::decode(&stored[..cut], part).map(drop));
    }
    for at in 0..stored.len() {
        let mut damaged = stored.to_vec();
        damaged[at] ^= 1 << (at % 8);
        corrupt(Part::decode(&damaged, part).map(drop));
    }

    let info = &section.parts[0].blocks()[0];
    let stored = &bytes[..info.length as usize];
    for cut in 0..stored.len() {
        corrupt(decode_stored(&stored[..cut], info.checksum, BlockForm::Searched).map(drop));
    }
    for at in 0..stored.len() {
        let mut damaged = stored.to_vec();
        damaged[at] ^= 1 << (at % 8);
        corrupt(decode_stored(&damaged, info.checksum, BlockForm::Searched).map(drop));
    }
}

#[test]
fn garbage_with_a_right_checksum_never_panics() {
    let mut rng = SmallRng::seed_from_u64(9);
    let (section, _) = random_section(7, 60);
    let bytes = bytes_of(&section);
    let meta = &bytes[section.meta_offset as usize..];
    let directory = &bytes[bytes.len() - section.directory_length as usize..];
    let damage = |bytes: &[u8], rng: &mut SmallRng| {
        let mut bytes = bytes.to_vec();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        if rng.random_bool(0.2) {
            bytes.truncate(rng.random_range(0..=bytes.len()));
        }
        bytes
    };
    let mut survived = [0; 3];
    for _ in 0..4000 {
        let damaged = damage(directory, &mut rng);
        // With a checksum of the whole that fits, whatever it says of what stands before.
        let claims = damaged.get(8..12).map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap()));
        let whole = crc32c::crc32c_combine(claims, crc32c::crc32c(&damaged), damaged.len());
        survived[0] += u32::from(Directory::decode(&damaged, whole).is_ok());
        for (info, part) in section.directory.parts().iter().zip(&section.parts) {
            let damaged = damage(&meta[info.at as usize..][..info.length as usize], &mut rng);
            let info = PartInfo { checksum: crc32c::crc32c(&damaged), ..info.clone() };
            if let Ok(part) = Part::decode(&damaged, &info) {
                survived[1] += 1;
                for i in 0..part.blocks().len() {
                    let _ = (part.compare_first(i, b"key"), part.seek(i, b"key"), part.filter().may_hold(rng.random()));
                }
            }
            for info in part.blocks() {
                let damaged = damage(&bytes[info.offset as usize..][..info.length as usize], &mut rng);
                if let Ok(block) = decode_stored(&damaged, crc32c::crc32c(&damaged), BlockForm::Walked) {
                    survived[2] += 1;
                    let block = block.indexed();
                    for i in 0..block.len() {
                        let _ = (block.suffix(i), EntryRef::decode(block.entry(i)), block.is_key(i, b"key"));
                    }
                    let _ = (block.lower_bound(0, b"key"), block.find(rng.random(), b"key"));
                }
            }
        }
    }
    assert!(survived.iter().all(|n| *n > 100), "{survived:?}");
}

#[test]
fn entries_are_as_released() {
    let mut golden = Golden::default();
    let entries = [
        ("put", EntryRef::Put { value: b"value", expiry: Expiry::Never }),
        ("put until event time -2", EntryRef::Put { value: b"", expiry: Expiry::EventTime(-2) }),
        ("put until processing time 3", EntryRef::Put { value: b"v", expiry: Expiry::ProcessingTime(3) }),
        ("delete", EntryRef::Delete),
        ("merge written at 5", EntryRef::Merge { operand: b"op", written_ms: 5, expiry: Expiry::Never }),
        ("merge until event time 9", EntryRef::Merge { operand: b"op", written_ms: -5, expiry: Expiry::EventTime(9) }),
    ];
    for (name, entry) in &entries {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        golden.bytes(name, &bytes);
    }
    golden.compare("entries-1.txt");
    for (name, entry) in &entries {
        assert_eq!(EntryRef::decode(&Golden::read("entries-1.txt", name)).unwrap(), *entry);
    }
    for bad in [&[][..], &[0], &[4], &[0x31], &[0x11, 1, 2], &[3, 1], &[2, 2], &[0x12, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert!(EntryRef::decode(bad).is_err(), "{bad:?}");
    }
}

/// The section of the golden file. LZ4's output may differ between its releases, so the file is read, not compared;
/// with nothing in it, the test leaves what it should hold.
#[test]
fn sections_of_format_2_can_be_read() {
    let mut writer = SectionWriter::new(TASK);
    let mut expected = BTreeMap::new();
    for i in 0..40 {
        for key in [point(POINT, format!("{i}").as_bytes()), timed(i, b"same")] {
            let mut entry = Vec::new();
            EntryRef::Put { value: b"value value value", expiry: Expiry::Never }.encode(&mut entry);
            writer.put(&key, b"value value value", Expiry::Never);
            expected.insert(key.to_vec(), vec![entry]);
        }
    }
    // What map states brought: their keys, and what filters hold of them.
    let (mut maps, mut expected_of_maps) = (SectionWriter::new(TASK), BTreeMap::new());
    for i in 0..40_u8 {
        let key = mapped(&[1, 0x80, 0, 0, i % 3], &[1, i]);
        maps.put(&key, &[i; 12], Expiry::Never);
        let mut entry = Vec::new();
        EntryRef::Put { value: &[i; 12], expiry: Expiry::Never }.encode(&mut entry);
        expected_of_maps.insert(key.to_vec(), vec![entry]);
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/section-2.txt");
    let options = SectionOptions { block_bytes: 500, part_bytes: 1500, ..SectionOptions::default() };
    let mut golden = Golden::default();
    let written = [("section", &writer, options.clone()), ("bottom section", &writer, options.bottom())];
    let of_maps = [("section of maps", &maps, options.clone()), ("bottom section of maps", &maps, options.bottom())];
    for (name, writer, options) in written.into_iter().chain(of_maps) {
        let section = writer.clone().encode(&options, &layouts(), KeyGroupRanges::all(), Interval::default()).unwrap();
        golden.bytes(name, &bytes_of(&section));
        let place = [section.meta_offset, section.directory_length.into(), section.checksum.into()];
        golden.bytes(
            &format!("{name}: offset of the index, length of the directory, checksum"),
            &place.map(u64::to_le_bytes).concat(),
        );
    }
    if !std::path::Path::new(file).exists() {
        golden.compare("section-2.txt");
    }
    let expected = [("section", &expected), ("bottom section", &expected)];
    let expected_of_maps = [("section of maps", &expected_of_maps), ("bottom section of maps", &expected_of_maps)];
    for (name, expected) in expected.into_iter().chain(expected_of_maps) {
        let numbers =
            Golden::read("section-2.txt", &format!("{name}: offset of the index, length of the directory, checksum"));
        let number = |at: usize| u64::from_le_bytes(numbers[at * 8..at * 8 + 8].try_into().unwrap());
        let place =
            Place { meta_offset: number(0) as usize, directory_length: number(1) as usize, checksum: number(2) as u32 };
        assert_eq!(read_back(&Golden::read("section-2.txt", name), place), *expected);
    }
}

#[test]
fn slots_of_dropped_blocks_are_emptied() {
    let mut slots = super::index::Slots::new(80);
    let block = || {
        let mut builder = super::block::BlockBuilder::new(Compression::None);
        builder.add(b"k", b"v").unwrap();
        let (body, _) = builder.finish(&mut Vec::new());
        SharedBlock::of_body(Bytes::copy_from_slice(body)).unwrap()
    };
    let kept: Vec<SharedBlock> = (0..40).map(|_| block()).collect();
    for (i, block) in kept.iter().enumerate() {
        slots.fill(i, Arc::downgrade(&block.0));
    }
    let of = |slots: &super::index::Slots, live: bool| {
        let filled = slots.blocks().iter().filter(|s| !s.ptr_eq(&std::sync::Weak::new()));
        filled.filter(|s| (s.strong_count() > 0) == live).count()
    };
    assert_eq!((of(&slots, true), of(&slots, false)), (40, 0));
    // Blocks that come and go leave no more behind than an eighth of all, and one.
    for round in 0..10 {
        for i in 40..80 {
            slots.fill(i, Arc::downgrade(&block().0));
            assert!(of(&slots, true) == 40 && of(&slots, false) <= 11, "{round} {i}: {}", of(&slots, false));
        }
    }
}
