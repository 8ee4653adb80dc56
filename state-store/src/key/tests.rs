use std::cmp::Ordering;
use std::sync::Arc;

use arrow_array::types::*;
use arrow_array::*;
use arrow_buffer::i256;
use arrow_schema::DataType;
use millstream_common::{KeyGroup, StateId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::golden::Golden;

fn encode(columns: &[ArrayRef]) -> KeyBuffer {
    let mut keys = KeyBuffer::default();
    encode_keys(columns, &mut keys).unwrap();
    keys
}

fn one(array: impl Array + 'static) -> Vec<u8> {
    encode(&[Arc::new(array)]).key(0).to_vec()
}

/// One array of each type that can be a key, each with a null.
fn samples() -> Vec<(&'static str, ArrayRef)> {
    let decimal = |p, s| {
        Decimal128Array::from(vec![Some(-1234), None, Some(0), Some(5), Some(1200)])
            .with_precision_and_scale(p, s)
            .unwrap()
    };
    vec![
        ("bool", Arc::new(BooleanArray::from(vec![Some(false), None, Some(true)]))),
        ("i8", Arc::new(Int8Array::from(vec![Some(i8::MIN), None, Some(-1), Some(0), Some(i8::MAX)]))),
        ("i16", Arc::new(Int16Array::from(vec![Some(i16::MIN), None, Some(7)]))),
        ("i32", Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(7)]))),
        ("i64", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(-1), Some(0), Some(1), Some(i64::MAX)]))),
        ("u8", Arc::new(UInt8Array::from(vec![Some(0), None, Some(255)]))),
        ("u16", Arc::new(UInt16Array::from(vec![Some(0), None, Some(u16::MAX)]))),
        ("u32", Arc::new(UInt32Array::from(vec![Some(0), None, Some(u32::MAX)]))),
        ("u64", Arc::new(UInt64Array::from(vec![Some(0), None, Some(u64::MAX)]))),
        ("f32", Arc::new(Float32Array::from(vec![Some(-1.5), None, Some(0.0), Some(f32::INFINITY)]))),
        (
            "f64",
            Arc::new(Float64Array::from(vec![
                Some(f64::NEG_INFINITY),
                None,
                Some(-2.5),
                Some(-0.0),
                Some(0.0),
                Some(1e300),
                Some(f64::INFINITY),
                Some(f64::NAN),
            ])),
        ),
        ("utf8", Arc::new(StringArray::from(vec![Some(""), None, Some("a"), Some("a\0b"), Some("grüße")]))),
        ("large_utf8", Arc::new(LargeStringArray::from(vec![Some("a"), None]))),
        ("utf8_view", Arc::new(StringViewArray::from(vec![Some("a text longer than twelve"), None]))),
        (
            "dictionary",
            Arc::new(vec![Some("b"), None, Some("a"), Some("b")].into_iter().collect::<DictionaryArray<Int32Type>>()),
        ),
        ("binary", Arc::new(BinaryArray::from(vec![Some(&b"\0\0"[..]), None, Some(&b"\xff"[..])]))),
        ("large_binary", Arc::new(LargeBinaryArray::from(vec![Some(&b"x"[..]), None]))),
        ("binary_view", Arc::new(BinaryViewArray::from(vec![Some(&b"x"[..]), None]))),
        (
            "fixed_binary",
            Arc::new(
                FixedSizeBinaryArray::try_from_sparse_iter_with_size(
                    [Some([1_u8, 0]), None, Some([0, 2])].into_iter(),
                    2,
                )
                .unwrap(),
            ),
        ),
        ("decimal", Arc::new(decimal(10, 2))),
        ("date32", Arc::new(Date32Array::from(vec![Some(-1), None, Some(20_000)]))),
        ("date64", Arc::new(Date64Array::from(vec![Some(86_400_000), None]))),
        ("timestamp_s", Arc::new(TimestampSecondArray::from(vec![Some(i64::MIN), None, Some(1)]))),
        ("timestamp_us", Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None, Some(1)]).with_timezone("UTC"))),
        ("timestamp_ns", Arc::new(TimestampNanosecondArray::from(vec![Some(1), None]))),
        ("duration_ms", Arc::new(DurationMillisecondArray::from(vec![Some(5), None]))),
        ("time32_s", Arc::new(Time32SecondArray::from(vec![Some(5), None]))),
        ("time64_us", Arc::new(Time64MicrosecondArray::from(vec![Some(5), None]))),
        ("null", Arc::new(NullArray::new(2))),
    ]
}

#[test]
fn bytes_hashes_and_key_groups_are_as_released() {
    let mut golden = Golden::default();
    for (name, array) in samples() {
        let keys = encode(&[array]);
        for i in 0..keys.len() {
            golden.bytes(&format!("{name}[{i}]"), keys.key(i));
            golden.line(&format!("  hash {:016x} group {}", keys.hash(i), keys.group(i).0));
        }
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![Some("a"), None])),
        Arc::new(Int64Array::from(vec![None, Some(-5)])),
        Arc::new(BooleanArray::from(vec![true, false])),
    ];
    let keys = encode(&columns);
    golden.bytes("columns[0]", keys.key(0));
    golden.bytes("columns[1]", keys.key(1));
    let mut key = Vec::new();
    point_key(StateId(3), KeyGroup(0x1234), b"key", &mut key);
    golden.bytes("point_key", &key);
    timed_key(StateId(3), -2, KeyGroup(0x1234), b"key", &mut key);
    golden.bytes("timed_key", &key);
    for (name, of) in [("text", &b"\x01ab\0\0"[..]), ("number", &[1, 0x80, 0, 0, 0, 0, 0, 0, 5]), ("nothing", b"")] {
        map_key(StateId(3), KeyGroup(0x1234), of, b"\x01entry", &mut key);
        golden.bytes(&format!("map_key of a {name}"), &key);
    }
    for zeros in [126, 127, 128, 300] {
        map_key(StateId(3), KeyGroup(0x1234), &[&vec![0; zeros][..], b"k"].concat(), b"", &mut key);
        golden.bytes(&format!("map_key of {zeros} zeros and a letter"), &key);
        map_key(StateId(3), KeyGroup(0x1234), &vec![0; zeros], b"", &mut key);
        golden.bytes(&format!("map_key of {zeros} zeros"), &key);
    }
    golden.compare("key-codec-1.txt");
}

#[test]
fn every_type_comes_back() {
    for (name, array) in samples() {
        let keys = encode(std::slice::from_ref(&array));
        let back = decode_keys(keys.iter(), &[array.data_type().clone()]).unwrap();
        assert_eq!(back[0].data_type(), array.data_type(), "{name}");
        let again = encode(&back);
        assert!(keys.iter().eq(again.iter()), "{name}");
        for row in 0..array.len() {
            let single = decode_key(keys.key(row), &[array.data_type().clone()]).unwrap();
            assert_eq!(encode(&single).key(0), keys.key(row), "{name}");
        }
        let with_more = [keys.key(0), b"sub-key"].concat();
        assert_eq!(encoded_len(&with_more, &[array.data_type().clone()]).unwrap(), keys.key(0).len(), "{name}");
        assert!(name == "null" || decode_key(&with_more, &[array.data_type().clone()]).is_err());
    }
}

#[test]
fn the_same_value_has_the_same_key_whatever_its_type() {
    let seven = one(Int64Array::from(vec![7]));
    assert_eq!(one(Int8Array::from(vec![7])), seven);
    assert_eq!(one(UInt32Array::from(vec![7])), seven);
    assert_eq!(encode(&[Arc::new(Int64Array::from(vec![Some(7), None]))]).key(0), seven);
    assert_ne!(one(UInt64Array::from(vec![7])), seven);
    assert_eq!(one(Float64Array::from(vec![-0.0])), one(Float32Array::from(vec![0.0])));
    let odd_nan = f64::from_bits(0xfff8_dead_beef_0001);
    assert_eq!(one(Float64Array::from(vec![odd_nan])), one(Float64Array::from(vec![f64::NAN])));
    let text = one(StringArray::from(vec!["a\0b"]));
    assert_eq!(one(LargeStringArray::from(vec!["a\0b"])), text);
    assert_eq!(one(StringViewArray::from(vec!["a\0b"])), text);
    assert_eq!(one(BinaryArray::from(vec![&b"a\0b"[..]])), text);
    assert_eq!(one(["a\0b"].into_iter().collect::<DictionaryArray<UInt8Type>>()), text);
    assert_eq!(one(TimestampSecondArray::from(vec![3])), one(TimestampNanosecondArray::from(vec![3_000_000_000])));
    assert_eq!(one(Date32Array::from(vec![2])), one(Date64Array::from(vec![2 * 86_400_000])));
    let decimal = one(Decimal128Array::from(vec![1230]).with_precision_and_scale(10, 2).unwrap());
    assert_eq!(one(Decimal32Array::from(vec![123]).with_precision_and_scale(5, 1).unwrap()), decimal);
    let wide = Decimal256Array::from(vec![i256::from_i128(12_300_000)]).with_precision_and_scale(70, 6).unwrap();
    assert_eq!(one(wide), decimal);
    assert_eq!(one(Decimal64Array::from(vec![0]).with_precision_and_scale(9, -2).unwrap()).len(), 2);
}

#[test]
fn what_cannot_be_a_key_is_refused_by_name() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)])]);
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1])), Arc::new(list)];
    let error = encode_keys(&columns, &mut KeyBuffer::default()).unwrap_err().to_string();
    assert!(error.contains("key column 1") && error.contains("List"), "{error}");
    assert!(check_key_type(0, &DataType::Utf8).is_ok());
    assert!(check_key_type(0, columns[1].data_type()).is_err());
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Float(Option<f64>),
    Decimal(Option<i128>),
}

impl Value {
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::Decimal(a), Self::Decimal(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => match (a, b) {
                (Some(a), Some(b)) if a == b => Ordering::Equal,
                (Some(a), Some(b)) => a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())),
                _ => a.is_some().cmp(&b.is_some()),
            },
            _ => unreachable!(),
        }
    }
}

fn random_value(column: usize, rng: &mut SmallRng) -> Value {
    let null = rng.random_bool(0.1);
    match column {
        0 => Value::Int((!null).then(|| rng.random_range(-3..3) << rng.random_range(0..62))),
        1 => {
            let length = rng.random_range(0..4);
            Value::Text(
                (!null).then(|| (0..length).map(|_| ['\0', 'a', 'ü', '\u{7f}'][rng.random_range(0..4)]).collect()),
            )
        }
        2 => {
            let all = [f64::NAN, -f64::NAN, 0.0, -0.0, 1.5, -1.5, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE];
            Value::Float((!null).then(|| all[rng.random_range(0..all.len())]))
        }
        _ => Value::Decimal((!null).then(|| rng.random_range(-20..20) * 10_i128.pow(rng.random_range(0..20)))),
    }
}

#[test]
fn keys_compare_as_their_columns_do() {
    let mut rng = SmallRng::seed_from_u64(1);
    for _ in 0..40 {
        let rows: Vec<Vec<Value>> = (0..60).map(|_| (0..4).map(|c| random_value(c, &mut rng)).collect()).collect();
        macro_rules! column {
            ($i:expr, $variant:ident) => {
                rows.iter().map(|r| if let Value::$variant(v) = &r[$i] { v.clone() } else { unreachable!() })
            };
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter(column!(0, Int))),
            Arc::new(StringArray::from_iter(column!(1, Text))),
            Arc::new(Float64Array::from_iter(column!(2, Float))),
            Arc::new(Decimal128Array::from_iter(column!(3, Decimal)).with_precision_and_scale(38, 10).unwrap()),
        ];
        let keys = encode(&columns);
        for a in 0..rows.len() {
            for b in 0..rows.len() {
                let by_value = rows[a]
                    .iter()
                    .zip(&rows[b])
                    .map(|(x, y)| x.compare(y))
                    .find(|o| o.is_ne())
                    .unwrap_or(Ordering::Equal);
                assert_eq!(keys.key(a).cmp(keys.key(b)), by_value, "{:?} {:?}", rows[a], rows[b]);
            }
        }
    }
}

#[test]
fn damaged_keys_are_errors() {
    let mut rng = SmallRng::seed_from_u64(2);
    for (_, array) in samples() {
        let keys = encode(std::slice::from_ref(&array));
        let types = [array.data_type().clone()];
        for row in 0..keys.len() {
            for cut in 0..keys.key(row).len() {
                assert!(decode_key(&keys.key(row)[..cut], &types).is_err());
            }
            for _ in 0..50 {
                let mut bytes = keys.key(row).to_vec();
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
                // Anything but a panic.
                let _ = decode_key(&bytes, &types);
            }
        }
    }
}

#[test]
fn store_keys_split_and_sort() {
    let mut a = Vec::new();
    point_key(StateId(1), KeyGroup(2), b"k", &mut a);
    assert_eq!(split_point_key(&a), Some((StateId(1), KeyGroup(2), &b"k"[..])));
    assert_eq!(&a[POINT_KEY_AT..], b"k");
    let mut b = Vec::new();
    timed_key(StateId(1), -7, KeyGroup(9), b"k", &mut a);
    timed_key(StateId(1), 7, KeyGroup(0), b"", &mut b);
    assert_eq!(split_timed_key(&a), Some((StateId(1), -7, KeyGroup(9), &b"k"[..])));
    assert_eq!((time_of(&a), state_of(&a)), (Some(-7), Some(StateId(1))));
    assert_eq!(&a[TIMED_KEY_AT..], b"k");
    assert!(a < b && state_start(StateId(1)) < a && b < state_end(StateId(1)));
    let mut bound = Vec::new();
    timed_start(StateId(1), -6, &mut bound);
    assert!(a < bound && bound < b);
    assert_eq!((split_point_key(&[0; 3]), split_timed_key(&[0; 11])), (None, None));
}

/// Keys with many zeros, alike as far as can be.
fn keys_with_zeros(rng: &mut SmallRng) -> Vec<Vec<u8>> {
    let mut keys = vec![Vec::new()];
    for _ in 0..60 {
        let mut key: Vec<u8> = keys[rng.random_range(0..keys.len())].clone();
        key.truncate(rng.random_range(0..=key.len()));
        for _ in 0..rng.random_range(0..4) {
            match rng.random_range(0..4) {
                0 => key.extend(vec![0; rng.random_range(1..4)]),
                1 => key.extend(vec![0; rng.random_range(120..270)]),
                _ => key.push([0, 1, 2, 0x7e, 0x7f, 0x80, 0xfe, 0xff][rng.random_range(0..8)]),
            }
        }
        keys.push(key);
    }
    keys
}

#[test]
fn keys_of_maps_end_by_themselves_and_sort_as_they_are() {
    let mut rng = SmallRng::seed_from_u64(3);
    let (state, group) = (StateId(9), KeyGroup(7));
    for _ in 0..60 {
        let keys = keys_with_zeros(&mut rng);
        let prefix_of = |key: &[u8]| {
            let mut prefix = Vec::new();
            map_prefix(state, group, key, &mut prefix);
            prefix
        };
        let prefixes: Vec<Vec<u8>> = keys.iter().map(|k| prefix_of(k)).collect();
        for (a, prefix) in keys.iter().zip(&prefixes) {
            for (b, other) in keys.iter().zip(&prefixes) {
                assert_eq!(prefix.cmp(other), a.cmp(b), "{a:?} {b:?}");
                assert_eq!(other.starts_with(prefix), a == b);
            }
            let (mut whole, mut back) = (Vec::new(), vec![9; 3]);
            let entry: Vec<u8> = (0..rng.random_range(0..4)).map(|_| [0, 1, 0xff][rng.random_range(0..3)]).collect();
            map_key(state, group, a, &entry, &mut whole);
            assert_eq!(map_prefix_len(&whole), Some(prefix.len()));
            assert_eq!(split_map_key(&whole, &mut back), Some((state, group, &entry[..])));
            assert_eq!(back, *a);
            let end = map_prefix_end(prefix);
            assert!(*prefix <= whole && whole < end && state_start(state) < whole);
            assert!(is_map_prefix_end(&end, prefix) && !is_map_prefix_end(&whole, prefix));
            // What is not whole has no end that could be taken for one.
            for cut in 0..prefix.len() {
                assert_eq!((map_prefix_len(&prefix[..cut]), split_map_key(&prefix[..cut], &mut back)), (None, None));
            }
        }
    }
}

#[test]
fn what_is_no_key_of_a_map_is_refused_and_a_key_has_one_form() {
    let mut rng = SmallRng::seed_from_u64(4);
    let (mut read, mut refused, mut key) = (0, 0, Vec::new());
    for _ in 0..200_000 {
        let length = rng.random_range(0..12);
        let some = |rng: &mut SmallRng| [0, 0, 0, 1, 2, 126, 127, 128, 129, 254, 255][rng.random_range(0..11)];
        let bytes: Vec<u8> = (0..length).map(|_| some(&mut rng)).collect();
        match split_map_key(&bytes, &mut key) {
            Some((state, group, entry)) => {
                let mut again = Vec::new();
                map_key(state, group, &key, entry, &mut again);
                assert_eq!(again, bytes);
                assert_eq!(map_prefix_len(&bytes), Some(bytes.len() - entry.len()));
                read += 1;
            }
            None => refused += 1,
        }
    }
    assert!(read > 20_000 && refused > 20_000, "{read} {refused}");
}

#[test]
fn numbers_become_shorter_in_a_map_and_texts_keep_their_length() {
    let mut prefix = Vec::new();
    let mut escaped = |key: &[u8]| {
        map_prefix(StateId(0), KeyGroup(0), key, &mut prefix);
        prefix.len() - POINT_KEY_AT
    };
    let number = one(Int64Array::from(vec![77]));
    assert_eq!((number.len(), escaped(&number)), (9, 7));
    let text = one(StringArray::from(vec!["a text"]));
    assert_eq!(escaped(&text), text.len());
}

#[test]
fn a_reused_buffer_holds_only_the_new_keys() {
    let mut keys = KeyBuffer::default();
    encode_keys(&[Arc::new(StringArray::from(vec!["long text", "x"]))], &mut keys).unwrap();
    encode_keys(&[Arc::new(Int64Array::from(vec![5]))], &mut keys).unwrap();
    assert_eq!((keys.len(), keys.key(0)), (1, one(Int64Array::from(vec![5])).as_slice()));
    encode_keys(&[Arc::new(Int64Array::from(Vec::<i64>::new()))], &mut keys).unwrap();
    assert!(keys.is_empty());
    keys.push(b"abc").unwrap();
    assert_eq!((keys.key(0), keys.hash(0)), (&b"abc"[..], millstream_common::hash::stable_hash(b"abc")));
}
