//! Frames there and back, without sockets.

use std::io::IoSlice;
use std::sync::Arc;

use millstream_common::{Env, Epoch, Execution};

use super::super::decode::Decoder;
use super::super::encode::{Encoder, Pending};
use super::super::frame::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
use super::samples;
use crate::element::{Barrier, BarrierKind, StreamElement};

pub(super) const EXECUTION: Execution = Execution(7);

pub(super) fn encoder() -> Encoder {
    Encoder::new(EXECUTION, PAYLOAD_BYTES_MAX)
}

/// What `encoder` writes for `element`.
pub(super) fn encode(encoder: &mut Encoder, element: &StreamElement) -> Vec<u8> {
    let mut pending = Pending::default();
    encoder.encode(element, &mut pending).unwrap();
    drain(&mut pending, |waiting| waiting)
}

/// Takes all that waits, in pieces of the sizes that `size` chooses.
fn drain(pending: &mut Pending, mut size: impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut out = Vec::new();
    while pending.bytes() > 0 {
        let mut slices = [IoSlice::new(&[]); 5];
        let filled = pending.fill(&mut slices);
        let joined: Vec<u8> = slices[..filled].iter().flat_map(|s| s.iter().copied()).collect();
        let taken = size(joined.len()).clamp(1, joined.len());
        out.extend_from_slice(&joined[..taken]);
        pending.advance(taken);
    }
    out
}

/// The frames in `bytes`.
pub(super) fn frames(mut bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut out = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let header = Header::parse(head, EXECUTION).unwrap();
        let (payload, rest) = rest.split_at(header.length as usize);
        header.check(head, payload).unwrap();
        out.push((header, payload.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    out
}

fn decode_batches(decoder: &mut Decoder, bytes: &[u8]) -> Vec<arrow_array::RecordBatch> {
    let element = |(header, payload)| match decoder.decode(&header, payload).unwrap() {
        StreamElement::Batch(batch) => batch,
        other => panic!("{other:?}"),
    };
    frames(bytes).into_iter().map(element).collect()
}

#[test]
fn batches_of_every_type_come_as_they_were() {
    let (mut encoder, mut decoder) = (encoder(), Decoder::default());
    let batch = samples::batch(1000);
    for (offset, rows) in [(0, 1000), (3, 990), (7, 1), (0, 0), (500, 0), (999, 1), (64, 128)] {
        let sent = batch.slice(offset, rows);
        let bytes = encode(&mut encoder, &StreamElement::Batch(sent.clone()));
        assert_eq!(decode_batches(&mut decoder, &bytes), [sent], "{rows} rows from {offset}");
    }
}

#[test]
fn the_schema_goes_once_until_it_changes() {
    let (mut encoder, mut decoder) = (encoder(), Decoder::default());
    let flags = |bytes: &[u8]| frames(bytes)[0].0.flags;
    let (a, b) = (samples::numbers(0, 10), samples::batch(10));
    for (batch, flag) in [(&a, 1), (&a, 0), (&b, 1), (&b, 0), (&a, 1), (&samples::numbers(5, 5), 0)] {
        let bytes = encode(&mut encoder, &StreamElement::Batch(batch.clone()));
        assert_eq!(flags(&bytes), flag);
        assert_eq!(decode_batches(&mut decoder, &bytes), std::slice::from_ref(batch));
    }
}

#[test]
fn a_batch_that_is_too_long_goes_in_parts() {
    let (mut encoder, mut decoder) = (Encoder::new(EXECUTION, 2000), Decoder::default());
    let sent = samples::numbers(0, 1000);
    let bytes = encode(&mut encoder, &StreamElement::Batch(sent.clone()));
    let parts = decode_batches(&mut decoder, &bytes);
    assert!(parts.len() >= 8, "{} parts", parts.len());
    let mut first = 0;
    for part in parts {
        assert_eq!(part, sent.slice(first, part.num_rows()));
        first += part.num_rows();
    }
    assert_eq!(first, 1000);
    let refused =
        Encoder::new(EXECUTION, 100).encode(&StreamElement::Batch(sent), &mut Pending::default()).unwrap_err();
    assert_eq!(refused.number(), 3120);
}

#[test]
fn a_type_that_cannot_be_sent_is_named() {
    let refused = encoder().encode(&StreamElement::Batch(samples::dictionary()), &mut Pending::default()).unwrap_err();
    assert!(refused.to_string().contains("column word") && refused.number() == 1124, "{refused}");
}

#[test]
fn small_elements_come_as_they_were() {
    let barrier = |kind| StreamElement::Barrier(Barrier { epoch: Epoch(41), kind });
    let sent = [
        StreamElement::Watermark(i64::MIN),
        StreamElement::Watermark(-5),
        StreamElement::Watermark(i64::MAX),
        StreamElement::Idle,
        barrier(BarrierKind::Checkpoint),
        barrier(BarrierKind::Last),
        barrier(BarrierKind::Rescale(Arc::new(samples::assignment()))),
    ];
    let (mut encoder, mut decoder) = (encoder(), Decoder::default());
    for element in sent {
        let bytes = encode(&mut encoder, &element);
        let [(header, payload)] = frames(&bytes).try_into().unwrap();
        let came = decoder.decode(&header, payload).unwrap();
        assert_eq!(format!("{came:?}"), format!("{element:?}"));
    }
}

#[test]
fn the_bytes_of_frames_do_not_shift() {
    let watermark = encode(&mut encoder(), &StreamElement::Watermark(258));
    let expected = [8, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 79, 160, 216, 5, 2, 1, 0, 0, 0, 0, 0, 0];
    assert_eq!(watermark, expected);
    let kind = BarrierKind::Rescale(Arc::new(samples::assignment()));
    let barrier = encode(&mut encoder(), &StreamElement::Barrier(Barrier { epoch: Epoch(1), kind }));
    let payload = [1, 0, 0, 0, 0, 0, 0, 0, 3, 8, 8, 18, 5, 10, 3, 16, 232, 7, 18, 9, 10, 7, 8, 232, 7, 16, 128, 128, 4];
    assert_eq!(barrier[HEADER_BYTES..], payload);
}

#[tokio::test]
async fn what_is_written_in_pieces_is_the_same() {
    let env = Env::test(5);
    for round in 0..50 {
        let (mut whole, mut pieces) = (Pending::default(), Pending::default());
        let (mut a, mut b) = (encoder(), encoder());
        for _ in 0..1 + round % 4 {
            let batch = StreamElement::Batch(samples::batch(1 + env.random_below(3000) as i32));
            for element in [StreamElement::Watermark(round), batch, StreamElement::Idle] {
                a.encode(&element, &mut whole).unwrap();
                b.encode(&element, &mut pieces).unwrap();
            }
        }
        let expected = drain(&mut whole, |waiting| waiting);
        let mut sent = Vec::new();
        sent.extend(drain(&mut pieces, |waiting| env.random_below(2 * waiting as u64) as usize));
        assert_eq!(sent, expected);
        assert_eq!(pieces.bytes(), 0);
    }
}
