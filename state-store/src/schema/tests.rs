//! Exams of schemas: tags, names of types, what may change, and what becomes of the bytes.

use arrow_schema::{DataType, TimeUnit};
use millstream_proto::version as proto;
use prost::Message;

use super::*;
use crate::golden::Golden;
use crate::layout::{Layout, StateLayout};
use crate::tree::{Tree, check_successor};
use millstream_common::Epoch;

const FILE: &str = "state-schema-1.txt";

fn column(name: &str, ty: DataType, nullable: bool) -> Field {
    Field::column(&ArrowField::new(name, ty, nullable))
}

fn record(fields: Vec<Field>) -> Form {
    Form::Record { kind: "row".into(), fields }
}

fn schema(value: Form) -> Schema {
    Schema { key: Vec::new(), map_key: Vec::new(), value, ttl: None }
}

fn all_types() -> Vec<DataType> {
    let units = [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond];
    let mut types = vec![
        DataType::Boolean,
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::UInt8,
        DataType::UInt16,
        DataType::UInt32,
        DataType::UInt64,
        DataType::Float16,
        DataType::Float32,
        DataType::Float64,
        DataType::Date32,
        DataType::Date64,
        DataType::Decimal32(9, 2),
        DataType::Decimal64(18, 0),
        DataType::Decimal128(23, 3),
        DataType::Decimal256(76, -2),
        DataType::FixedSizeBinary(16),
        DataType::Utf8,
        DataType::LargeUtf8,
        DataType::Utf8View,
        DataType::Binary,
        DataType::LargeBinary,
        DataType::BinaryView,
        DataType::Timestamp(TimeUnit::Millisecond, Some("Europe/Stockholm".into())),
    ];
    types.extend(units.map(|u| DataType::Timestamp(u, None)));
    types.extend(units.map(DataType::Duration));
    types
}

fn upgraded(old: &Form, new: &Form, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Upgrade::new(&schema(old.clone()), &schema(new.clone())).unwrap().apply(value, &mut out).unwrap();
    out
}

#[test]
fn tags_are_told_from_all_values_without_one() {
    for version in [1, 2, 3, 127, 128, 300, 16_383, 16_384, 1 << 28] {
        for value in [&b""[..], b"\x00", b"\x01\xff", b"\x80\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"] {
            let mut bytes = Vec::new();
            put_tag(version, &mut bytes);
            assert_eq!(bytes.is_empty(), version == UNTAGGED);
            assert!(bytes.len() == 2 || version == UNTAGGED || version > 127);
            bytes.extend_from_slice(value);
            assert_eq!(split_tag(&bytes), (version, value));
        }
    }
    // Every number, in its own form, is no tag.
    for n in (0..70_000u64).chain((0..64).map(|s| 1 << s)).chain([u64::MAX]) {
        let mut bytes = Vec::new();
        put_u64(n, &mut bytes);
        bytes.push(0);
        assert_eq!(split_tag(&bytes), (UNTAGGED, &bytes[..]), "{n}");
    }
}

#[test]
fn every_type_comes_back_by_its_name() {
    for ty in all_types() {
        let name = type_name(&ty).unwrap();
        assert_eq!(type_of_name(&name), Some(ty), "{name}");
    }
    let dictionary = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
    assert_eq!(type_name(&dictionary).as_deref(), Some("utf8"));
    for unknown in ["", "int128", "decimal128(1)", "decimal128(x,1)", "fixed_binary(-1)", "timestamp_ms(", "list(utf8)"]
    {
        assert_eq!(type_of_name(unknown), None, "{unknown}");
    }
    assert_eq!(type_name(&DataType::Null), None);
}

#[test]
fn fields_are_added_dropped_renamed_and_moved() {
    let old = record(vec![
        column("a", DataType::Int32, false),
        column("b", DataType::Utf8, true),
        Field::new("n", Form::Integer),
    ]);
    let new = record(vec![
        Field::new("count", Form::Integer).with_id(field_id("n")),
        column("a", DataType::Int64, true),
        column("c", DataType::Float64, true),
        column("d", DataType::Boolean, false).with_default(vec![COLUMN_VALUE, 1]),
        Field::new("more", Form::List(Box::new(Form::Integer))),
    ]);
    let mut value = vec![COLUMN_VALUE];
    value.extend((-7i32).to_le_bytes());
    value.push(COLUMN_VALUE);
    put_bytes("räk".as_bytes(), &mut value);
    put_i64(-300, &mut value);
    let mut expected = Vec::new();
    put_i64(-300, &mut expected);
    expected.push(COLUMN_VALUE);
    expected.extend((-7i64).to_le_bytes());
    expected.extend([COLUMN_NULL, COLUMN_VALUE, 1, 0]);
    assert_eq!(upgraded(&old, &new, &value), expected);
    let upgrade = Upgrade::new(&schema(old), &schema(new)).unwrap();
    for cut in 0..value.len() {
        assert!(upgrade.apply(&value[..cut], &mut Vec::new()).is_err());
    }
    value.push(0);
    assert!(upgrade.apply(&value, &mut Vec::new()).is_err());
}

#[test]
fn parts_inside_lists_and_frames_change() {
    let rows = |fields| Form::List(Box::new(Form::Framed(Box::new(record(fields)))));
    let old = rows(vec![column("a", DataType::UInt8, true), column("b", DataType::Utf8, true)]);
    let new = rows(vec![column("a", DataType::Int16, true), column("c", DataType::Utf8, true)]);
    let mut value = vec![2];
    put_bytes(&[COLUMN_VALUE, 200, COLUMN_VALUE, 1, b'x'], &mut value);
    put_bytes(&[COLUMN_NULL, COLUMN_NULL], &mut value);
    let mut expected = vec![2];
    put_bytes(&[COLUMN_VALUE, 200, 0, COLUMN_NULL], &mut expected);
    put_bytes(&[COLUMN_NULL, COLUMN_NULL], &mut expected);
    assert_eq!(upgraded(&old, &new, &value), expected);
    assert_eq!(upgraded(&new, &new, &expected), expected);
}

#[test]
fn numbers_are_widened_exactly() {
    let wide = |old: DataType, new: DataType, bytes: &[u8]| {
        let mut value = vec![COLUMN_VALUE];
        value.extend_from_slice(bytes);
        upgraded(&Form::Column(old), &Form::Column(new), &value)[1..].to_vec()
    };
    use DataType::*;
    for n in [0i8, 1, -1, i8::MIN, i8::MAX] {
        assert_eq!(wide(Int8, Int16, &n.to_le_bytes()), i16::from(n).to_le_bytes());
        assert_eq!(wide(Int8, Int64, &n.to_le_bytes()), i64::from(n).to_le_bytes());
    }
    for n in [0u32, 7, u32::MAX] {
        assert_eq!(wide(UInt32, Int64, &n.to_le_bytes()), i64::from(n).to_le_bytes());
        assert_eq!(wide(UInt32, UInt64, &n.to_le_bytes()), u64::from(n).to_le_bytes());
    }
    for f in [0.0f32, -0.0, 1.5, f32::MIN_POSITIVE, f32::INFINITY, f32::NAN] {
        assert_eq!(wide(Float32, Float64, &f.to_le_bytes()), f64::from(f).to_le_bytes());
    }
    let halves = [
        (0u16, 0.0f32),
        (0x3c00, 1.0),
        (0xc000, -2.0),
        (0x7bff, 65_504.0),
        (1, 5.960_464_5e-8),
        (0xfc00, f32::NEG_INFINITY),
    ];
    for (bits, f) in halves {
        assert_eq!(wide(Float16, Float32, &bits.to_le_bytes()), f.to_le_bytes(), "{f}");
        assert_eq!(wide(Float16, Float64, &bits.to_le_bytes()), f64::from(f).to_le_bytes());
    }
    for n in [0i128, 12_345, -12_345, 10i128.pow(22) - 1, -(10i128.pow(22))] {
        assert_eq!(wide(Decimal128(23, 3), Decimal128(25, 5), &n.to_le_bytes()), (n * 100).to_le_bytes());
        let small = (n % 1_000_000_000) as i32;
        assert_eq!(wide(Decimal32(9, 2), Decimal128(20, 2), &small.to_le_bytes()), i128::from(small).to_le_bytes());
        let wider = arrow_buffer::i256::from_i128(n * 10).to_le_bytes();
        assert_eq!(wide(Decimal128(23, 3), Decimal256(40, 4), &n.to_le_bytes()), wider);
    }
    assert_eq!(wide(Utf8, LargeUtf8, &[2, b'h', b'i']), [2, b'h', b'i']);
}

#[test]
fn a_stamp_comes_with_the_ttl_and_stays() {
    let value = record(vec![Field::new("n", Form::Integer)]);
    let ttl = Some(Ttl { duration_ms: 5, clock: TtlClock::EventTime });
    let (without, with) = (schema(value.clone()), Schema { ttl, ..schema(value) });
    let mut out = Vec::new();
    Upgrade::new(&without, &with).unwrap().apply(&[6], &mut out).unwrap();
    let mut rest = &out[..];
    assert_eq!((take_i64(&mut rest).unwrap(), rest), (NEVER_EXPIRES, &[6u8][..]));
    // What is stored expires by it, whatever a program wants now.
    assert!(Upgrade::new(&with, &without).unwrap_err().contains("keep one"));
    let other_clock = Schema { ttl: Some(Ttl { duration_ms: 5, clock: TtlClock::ProcessingTime }), ..with.clone() };
    assert!(Upgrade::new(&with, &other_clock).unwrap_err().contains("another clock"));
    let longer = Schema { ttl: Some(Ttl { duration_ms: 9, clock: TtlClock::EventTime }), ..with.clone() };
    assert!(Upgrade::new(&with, &longer).unwrap().is_same());
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    use DataType::*;
    let key = |ty| Schema { key: vec![KeyColumn { name: "k".into(), ty, nullable: false }], ..schema(Form::Integer) };
    assert!(Upgrade::new(&key(Int64), &key(Utf8)).unwrap_err().contains("the key"));
    let map = |ty| Schema { map_key: key(ty).key, ..key(Int64) };
    assert!(Upgrade::new(&map(Int64), &map(Utf8)).unwrap_err().contains("map key"));
    assert!(Upgrade::new(&map(Int64), &key(Int64)).unwrap().is_same(), "not known is no other one");
    let one = |ty, nullable| record(vec![column("a", ty, nullable)]);
    let refused = |old: Form, new: Form, words: &str| {
        let why = Upgrade::new(&schema(old), &schema(new)).unwrap_err();
        assert!(why.contains(words), "{why}");
    };
    let pairs = [
        (Int64, Int32),
        (Int32, UInt64),
        (UInt64, Int64),
        (Float64, Float32),
        (Int32, Float64),
        (Int64, Utf8),
        (LargeUtf8, Utf8),
        (Utf8, Binary),
        (Decimal128(10, 2), Decimal128(10, 3)),
        (Decimal128(10, 3), Decimal128(12, 2)),
        (Decimal256(50, 2), Decimal128(30, 2)),
        (Timestamp(TimeUnit::Second, None), Timestamp(TimeUnit::Millisecond, None)),
        (Date32, Int32),
    ];
    for (old, new) in pairs {
        refused(one(old, true), one(new, true), "field 'a' was");
    }
    refused(one(Int64, true), one(Int64, false), "could be null");
    refused(record(vec![]), one(Int64, false), "has no default");
    let bad = column("a", Int64, false).with_default(vec![COLUMN_VALUE, 1]);
    refused(record(vec![]), record(vec![bad]), "default that is no int64");
    refused(one(Int64, true), Form::Record { kind: "other".into(), fields: vec![] }, "was 'row' and would be 'other'");
    refused(one(Int64, true), Form::Integer, "would be integer");
    refused(Form::Opaque("a".into()), Form::Opaque("b".into()), "bytes 'a'");
    let rest = |more: Vec<Field>| record([vec![Field::new("r", Form::Rest)], more].concat());
    refused(rest(vec![]), rest(vec![column("a", Int64, true)]), "behind one that goes to the end");
    refused(rest(vec![]), record(vec![]), "cannot be told from the tag");
    let distinct = |fields| Form::Record { kind: DISTINCT_ROW.into(), fields };
    refused(distinct(vec![column("a", Int64, true)]), distinct(vec![]), "would be dropped");
}

fn open(tree: &mut Tree, text: &str, schema: Option<Schema>) -> millstream_common::Result<StateEntryOf> {
    let task = tree.add_task("t")?;
    let layout = StateLayout { layout: Layout::Point, merge_operator: String::new() };
    tree.add_described_state(task, "t", "s", layout, (text, schema))?;
    Ok(tree.states()[0].clone())
}

type StateEntryOf = crate::tree::StateEntry;

#[test]
fn what_cannot_be_stored_is_refused() {
    let twice = vec![column("a", DataType::Int32, true), column("b", DataType::Int32, true).with_id(field_id("a"))];
    let ttl = Some(Ttl { duration_ms: 0, clock: TtlClock::EventTime });
    for (bad, word) in [
        (schema(record(twice)), "'a' and 'b'"),
        (schema(Form::Framed(Box::new(Form::Column(DataType::Utf8View)))), "Utf8View"),
        (schema(Form::List(Box::new(Form::Column(DataType::Null)))), "Null"),
        (Schema { ttl, ..schema(Form::Integer) }, "millisecond"),
        (
            Schema {
                key: vec![KeyColumn { name: "k".into(), ty: DataType::Null, nullable: true }],
                ..schema(Form::Integer)
            },
            "'k'",
        ),
        (
            Schema {
                map_key: vec![KeyColumn { name: "entry".into(), ty: DataType::Null, nullable: true }],
                ..schema(Form::Integer)
            },
            "'entry'",
        ),
    ] {
        let error = open(&mut Tree::default(), "words", Some(bad)).unwrap_err();
        assert!(error.number() == 1208 && error.what().contains(word), "{error}");
    }
}

#[test]
fn the_table_of_states_keeps_the_history() {
    let (a, b, c) = (
        schema(record(vec![column("a", DataType::Int32, true)])),
        schema(record(vec![column("a", DataType::Int64, true)])),
        schema(record(vec![column("renamed", DataType::Int64, true).with_id(field_id("a"))])),
    );
    let mut tree = Tree::default();
    assert_eq!(open(&mut tree, "row (a)", Some(a.clone())).unwrap().schemas, std::slice::from_ref(&a));
    let before = tree.clone();
    assert_eq!(open(&mut tree, "row (a)", Some(a.clone())).unwrap().value_schema, "row (a)");
    let entry = open(&mut tree, "row (b)", Some(b.clone())).unwrap();
    assert_eq!((entry.schemas, entry.value_schema.as_str()), (vec![a.clone(), b.clone()], "row (b) @2"));
    check_successor(&before, &tree, (Epoch(1), Epoch(1))).unwrap();
    assert!(check_successor(&tree, &before, (Epoch(1), Epoch(1))).is_err());
    // Another name is no other form.
    let entry = open(&mut tree, "row (b)", Some(c.clone())).unwrap();
    assert_eq!(entry.schemas, [a.clone(), c.clone()]);
    assert_eq!(Tree::from_proto(&tree.to_proto()).unwrap(), tree);
    // Narrower again.
    let error = open(&mut tree, "row (a)", Some(a.clone())).unwrap_err();
    assert_eq!(error.number(), 1202);
    assert!(error.what().contains("renamed: int64?") && error.what().contains("a: int32?"), "{error}");
}

#[test]
fn a_state_of_an_earlier_release_is_taken_on_by_its_words() {
    let mut tree = Tree::default();
    open(&mut tree, "row (a)", None).unwrap();
    let described = schema(record(vec![column("a", DataType::Int32, true)]));
    assert_eq!(open(&mut tree.clone(), "row (b)", Some(described.clone())).unwrap_err().number(), 1202);
    assert_eq!(open(&mut tree, "row (a)", Some(described.clone())).unwrap().schemas, std::slice::from_ref(&described));
    // It knew no TTL: its values have no stamp, and those with one have a tag.
    let ttl = Some(Ttl { duration_ms: 5, clock: TtlClock::EventTime });
    let mut without = Tree::default();
    open(&mut without, "row (a)", None).unwrap();
    let with = Schema { ttl, ..described.clone() };
    let schemas = open(&mut without, "row (a)", Some(with.clone())).unwrap().schemas;
    assert_eq!(schemas, [described.clone(), with]);
    // The same of one that only had words.
    let mut tree = Tree::default();
    open(&mut tree, "row (a)", Some(schema(Form::Opaque("row (a)".into())))).unwrap();
    assert_eq!(open(&mut tree, "row (a)", Some(described.clone())).unwrap().schemas, [described]);
}

#[test]
fn schemas_and_tags_are_the_released_bytes() {
    let mut golden = Golden::default();
    golden.line("# Tags of schema versions; the schema of a state as the protobuf message StateSchema.");
    for version in [1, 2, 127, 128, 16_384] {
        let mut tag = Vec::new();
        put_tag(version, &mut tag);
        golden.bytes(&format!("tag {version}"), &tag);
    }
    let fields = all_types().into_iter().enumerate().map(|(i, ty)| {
        let field = column(&format!("c{i}"), ty, i % 2 == 0);
        if i == 3 { field.with_default(vec![0]) } else { field }
    });
    let row = Form::Framed(Box::new(record(fields.collect())));
    let value = Form::Record {
        kind: "everything".into(),
        fields: vec![
            Field::new("n", Form::Integer),
            Field::new("rows", Form::List(Box::new(row))),
            Field::new("nothing", Form::Nothing).with_id(7),
            Field::new("words", Form::Framed(Box::new(Form::Opaque("words".into())))),
            Field::new("rest", Form::Rest),
        ],
    };
    let key = KeyColumn { name: "k".into(), ty: DataType::Decimal128(23, 3), nullable: true };
    let ttl = Some(Ttl { duration_ms: 3_600_000, clock: TtlClock::ProcessingTime });
    let all = Schema { key: vec![key], map_key: Vec::new(), value, ttl };
    let map_key = vec![KeyColumn { name: "entry".into(), ty: DataType::Utf8, nullable: false }];
    let map = Schema { map_key, ..all.clone() };
    golden.bytes("schema", &schema_to_proto(&all).encode_to_vec());
    golden.bytes("schema of a map", &schema_to_proto(&map).encode_to_vec());
    golden.compare(FILE);
    for (name, schema) in [("schema", all), ("schema of a map", map)] {
        let read = proto::StateSchema::decode(&Golden::read(FILE, name)[..]).unwrap();
        assert_eq!(schema_from_proto(&read).unwrap(), schema);
    }
}
