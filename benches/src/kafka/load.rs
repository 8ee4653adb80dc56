//! Auctions and bids for them, whose rows tell which bid they come from: bids are numbered, and the number is the bidder.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millstream_common::Result;

use super::clients::Writer;
use super::delays::Schedule;
use crate::outside::sleep;

/// All of the category that q20 is about.
pub const AUCTIONS: u64 = 1_000;

/// A batch of records is sent after this many milliseconds at the latest.
const LINGER_MS: u32 = 1;

/// From one look at what is due to the next.
const LOOK: Duration = Duration::from_millis(1);

/// A topic of events.
#[derive(Clone, Copy, Debug)]
pub struct Topic<'a> {
    /// `HOST:PORT`.
    pub broker: &'a str,
    /// Its name.
    pub name: &'a str,
    /// How many it has.
    pub partitions: u32,
}

/// Writes all auctions.
pub fn auctions(to: Topic<'_>) -> Result<()> {
    let mut writer = Writer::new(to.broker, to.name, to.partitions, LINGER_MS)?;
    for n in 0..AUCTIONS {
        writer.write(&auction(n))?;
    }
    writer.finish()
}

/// Writes bids as they are due from `start` on, until there were so many or somebody says `stop`. Says how late it was at most, behind
/// the first `warm_up` bids.
pub fn bids(
    to: Topic<'_>,
    schedule: Schedule,
    start: Instant,
    (events, warm_up): (u64, u64),
    stop: &AtomicBool,
) -> Result<Duration> {
    let mut writer = Writer::new(to.broker, to.name, to.partitions, LINGER_MS)?;
    let (mut sent, mut late, mut text) = (0, Duration::ZERO, String::new());
    while sent < events && !stop.load(Ordering::Relaxed) {
        let first = sent;
        let wait = start.saturating_duration_since(crate::outside::now());
        let due = if wait.is_zero() { schedule.due_by(start.elapsed()).min(events) } else { 0 };
        while sent < due {
            bid(sent, &mut text);
            writer.write(&text)?;
            sent += 1;
        }
        if sent > first && first >= warm_up {
            late = late.max(start.elapsed().saturating_sub(schedule.due(first)));
        }
        writer.poll();
        sleep(LOOK);
    }
    writer.finish()?;
    Ok(late)
}

fn auction(n: u64) -> String {
    format!(
        "{{\"event_type\":1,\"person\":null,\"auction\":{{\"id\":{n},\"itemName\":\"item {n}\",\"description\":\"of the bench\",\
         \"initialBid\":1,\"reserve\":2,\"dateTime\":\"2026-01-01 00:00:00.000\",\"expires\":\"2026-01-02 00:00:00.000\",\
         \"seller\":{n},\"category\":10,\"extra\":\"abcdefghij\"}},\"bid\":null}}"
    )
}

/// About 250 bytes.
fn bid(n: u64, text: &mut String) {
    text.clear();
    // Neighbours are for auctions that lie apart. Writing to a string cannot fail.
    let _ = write!(
        text,
        "{{\"event_type\":2,\"person\":null,\"auction\":null,\"bid\":{{\"auction\":{},\"bidder\":{n},\"price\":{},\
         \"channel\":\"channel-{}\",\"url\":\"https://www.nexmark.com/item.htm?query=1&channel_id={}\",\
         \"dateTime\":\"2026-01-01 00:00:04.330\",\"extra\":\"abcdefghij\"}}}}",
        n * 379 % AUCTIONS,
        n * 31 % 100_000,
        n % 4,
        n * 131_071 % 99_999_989,
    );
}

/// The number of the bid that a record shows; `None`: it shows none.
#[must_use]
pub fn bid_of(value: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"bidder\":";
    let at = value.windows(NAME.len()).position(|w| w == NAME)? + NAME.len();
    let digits = value[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&value[at..at + digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bid_is_found_again() {
        let mut text = String::new();
        for n in [0, 7, 123_456_789] {
            bid(n, &mut text);
            assert_eq!(bid_of(text.as_bytes()), Some(n));
            let event: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(event["bid"]["auction"].as_u64().unwrap() < AUCTIONS && event["auction"].is_null());
        }
        assert_eq!(bid_of(auction(3).as_bytes()), None);
        assert_eq!((bid_of(b""), bid_of(b"{\"bidder\":"), bid_of(b"\"bidder\":x")), (None, None, None));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&auction(3)).unwrap()["auction"]["category"], 10);
    }
}
