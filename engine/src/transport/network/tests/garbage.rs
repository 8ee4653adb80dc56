//! Decoders meet bytes that no writer wrote: an error or another value, never a panic, never a great allocation.

use millstream_common::Env;

use super::super::decode::Decoder;
use super::super::frame::{HEADER_BYTES, Header};
use super::super::handshake;
use super::codec::{EXECUTION, encode, encoder, frames};
use super::samples;
use crate::element::{Barrier, BarrierKind, StreamElement};

/// The payload of a batch frame with its schema, and where the rows begin.
fn sample(rows: i32) -> (Header, Vec<u8>) {
    let bytes = encode(&mut encoder(), &StreamElement::Batch(samples::batch(rows)));
    let [frame] = frames(&bytes).try_into().unwrap();
    frame
}

#[test]
fn each_flipped_bit_of_a_frame_is_noticed() {
    let bytes = encode(&mut encoder(), &StreamElement::Batch(samples::numbers(0, 20)));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let head = flipped.first_chunk::<HEADER_BYTES>().unwrap();
        let noticed = Header::parse(head, EXECUTION).and_then(|header| {
            let length = header.length as usize;
            // What a longer length would still have to bring does not come.
            header.check(head, flipped[HEADER_BYTES..].get(..length).unwrap_or(&[]))
        });
        assert!(noticed.is_err(), "bit {bit}");
    }
}

#[test]
fn frames_that_cannot_be_are_refused() {
    let good = encode(&mut encoder(), &StreamElement::Idle);
    let parse = |change: fn(&mut [u8; HEADER_BYTES])| {
        let mut head = *good.first_chunk::<HEADER_BYTES>().unwrap();
        change(&mut head);
        Header::parse(&head, EXECUTION).map(|_| ()).map_err(|e| e.number())
    };
    assert_eq!(parse(|_| ()), Ok(()));
    assert_eq!(parse(|h| h[4] = 9), Err(4122));
    assert_eq!(parse(|h| h[5] = 1), Err(4122));
    assert_eq!(parse(|h| h[7] = 1), Err(4122));
    assert_eq!(parse(|h| h[3] = 0xff), Err(4122));
    assert_eq!(parse(|h| h[8] = 6), Err(5120));
}

#[test]
fn a_batch_cut_anywhere_is_refused() {
    let (header, payload) = sample(50);
    assert!(Decoder::default().decode(&header, payload.clone()).is_ok());
    for length in 0..payload.len() {
        assert!(Decoder::default().decode(&header, payload[..length].to_vec()).is_err(), "{length} bytes");
    }
    let longer = [payload, vec![0; 8]].concat();
    assert!(Decoder::default().decode(&header, longer).is_err());
}

/// Changes a byte or a number among the first `part` bytes.
fn mutate(env: &Env, bytes: &mut [u8], part: usize) {
    let numbers = [0, 1, 7, 8, 39, 40, 41, 160, 1 << 31, 1 << 62, u64::MAX];
    let at = env.random_below(part as u64 - 8) as usize;
    match env.random_below(7) {
        0 => bytes[at] ^= 1 << env.random_below(8),
        1 => bytes[at] = 0xff,
        2 => bytes[at] = 0,
        3 => bytes[at] = env.random() as u8,
        4 => bytes[at] = bytes[at].wrapping_add(1),
        5 => bytes[at] = bytes[at].wrapping_sub(1),
        _ => {
            let at = at / 8 * 8;
            let number = numbers[env.random_below(numbers.len() as u64) as usize];
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
    }
}

/// Behind a checksum that is right, as if the writer itself were broken.
#[tokio::test]
async fn a_batch_of_garbage_never_panics() {
    let env = Env::test(11);
    let (header, payload) = sample(40);
    let (mut refused, mut taken) = (0, 0);
    for round in 0..30_000u64 {
        let mut bytes = payload.clone();
        // Schema and metadata are the first part, and the interesting one.
        let part = if round % 3 == 0 { bytes.len() } else { bytes.len() * 2 / 3 };
        for _ in 0..1 + env.random_below(3) {
            mutate(&env, &mut bytes, part);
        }
        match Decoder::default().decode(&header, bytes) {
            // Reading what was taken must not panic either.
            Ok(element) => taken += usize::from(!format!("{element:?}").is_empty()),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 5_000 && taken > 500, "{refused} refused, {taken} taken");
}

#[tokio::test]
async fn small_frames_of_garbage_never_panic() {
    let env = Env::test(12);
    let rescale = BarrierKind::Rescale(std::sync::Arc::new(samples::assignment()));
    let barrier = StreamElement::Barrier(Barrier { epoch: 3.into(), kind: rescale });
    let samples: Vec<_> =
        [StreamElement::Watermark(7), StreamElement::Idle, barrier].iter().map(|e| encode(&mut encoder(), e)).collect();
    let mut refused = 0;
    for _ in 0..20_000 {
        let bytes = &samples[env.random_below(3) as usize];
        let [(header, mut payload)] = frames(bytes).try_into().unwrap();
        payload.truncate(env.random_below(payload.len() as u64 + 1) as usize);
        if !payload.is_empty() {
            let at = env.random_below(payload.len() as u64) as usize;
            payload[at] = env.random() as u8;
        }
        refused += usize::from(Decoder::default().decode(&header, payload).is_err());
    }
    assert!(refused > 5_000, "{refused}");
}

#[tokio::test]
async fn a_handshake_comes_as_it_was_and_nothing_else_does() {
    let env = Env::test(13);
    let good = handshake::encode(&samples::key()).unwrap();
    assert!(handshake::read(&mut good.as_slice()).await.is_ok_and(|key| key == samples::key()));
    for length in 0..good.len() {
        assert!(handshake::read(&mut &good[..length]).await.is_err());
    }
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(handshake::read(&mut flipped.as_slice()).await.is_err(), "bit {bit}");
    }
    for _ in 0..2_000 {
        let random: Vec<u8> = (0..env.random_below(200)).map(|_| env.random() as u8).collect();
        assert!(handshake::read(&mut random.as_slice()).await.is_err());
    }
    let mut long = samples::key();
    long.job = "j".repeat(1025);
    assert_eq!(handshake::encode(&long).unwrap_err().number(), 1123);
}
