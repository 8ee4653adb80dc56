//! The generator: the event with number `n` is a pure function of `n` and the settings.
//!
//! The rules are those of the public benchmark: of 50 events in a row one is a person, three are auctions, 46 are
//! bids; three quarters of the auctions and bids come from one hot seller or bidder, half of the bids go to one hot
//! auction; prices run evenly through six orders of magnitude. Its values are not those of any other generator.

use std::sync::LazyLock;

use arrow_array::RecordBatch;
use millstream_common::Result;

use super::columns::EventColumns;
use super::vocabulary::{
    CHANNELS, CITIES, FIRST_NAMES, HOT_CHANNELS, LAST_NAMES, OTHER_CHANNELS, STATES, noise, trimmed_words,
};
use crate::random::{Draws, scale32};

/// Events that the proportions refer to: 1 person, then 3 auctions, then 46 bids.
const CYCLE: u64 = 50;
const AUCTIONS_OF_CYCLE: u64 = 3;
const FIRST_AUCTION: u64 = 1_000;
const FIRST_PERSON: u64 = 1_000;
/// Bidders count from here: the benchmark adds the first person's number twice.
const FIRST_BIDDER: u64 = 2_000;
const FIRST_CATEGORY: u64 = 10;
const CATEGORIES: u64 = 5;
/// Hot sellers, bidders and auctions change every so many of their kind.
const HOT_EVERY: u64 = 100;
/// People who sell and bid: the newest so many, and some who have not come yet.
const ACTIVE_PEOPLE: u64 = 1_000;
const PEOPLE_AHEAD: u64 = 10;
/// Auctions that are bid for: the newest so many, and some that have not come yet.
const AUCTIONS_IN_FLIGHT: u64 = 100;
const AUCTIONS_AHEAD: u64 = 10;
/// The events in which so many auctions begin as are in flight: half the greatest length of an auction.
const EVENTS_OF_AUCTIONS_IN_FLIGHT: u64 = AUCTIONS_IN_FLIGHT * CYCLE / AUCTIONS_OF_CYCLE;
/// Average sizes of events in bytes, which the extra text fills up.
const PERSON_BYTES: usize = 200;
const AUCTION_BYTES: usize = 500;
const BID_BYTES: usize = 100;

const SEED: u64 = 0x4d69_6c6c;

/// What the values of events depend on, besides their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSettings {
    /// Events per second of event time; at least 1.
    pub event_rate: u64,
    /// Event time of event 0, in milliseconds since 1970 (UTC).
    pub base_time_ms: i64,
}

impl EventSettings {
    /// The event time of event `n`, in milliseconds since 1970 (UTC).
    #[must_use]
    pub fn time_ms(&self, n: u64) -> i64 {
        self.base_time_ms + (u128::from(n) * 1_000 / u128::from(self.event_rate)) as i64
    }

    /// The events `first`, `first + step` and so on, `count` of them.
    pub fn generate(&self, first: u64, step: u64, count: usize) -> Result<RecordBatch> {
        let mut out = EventColumns::with_capacity(count);
        let mut clock = Clock::new(self.event_rate, first, step);
        let channels = &*OTHER_CHANNELS;
        let prices = &*PRICES;
        let mut n = first;
        for _ in 0..count {
            let time = self.base_time_ms + clock.ms as i64;
            let mut draws = Draws::of(SEED, n);
            match n % CYCLE {
                0 => person(n, time, &mut draws, &mut out),
                1..=AUCTIONS_OF_CYCLE => {
                    let horizon = self.time_ms(n + EVENTS_OF_AUCTIONS_IN_FLIGHT) - time;
                    auction(n, time, horizon as u64, prices, &mut draws, &mut out);
                }
                _ => {
                    let (channel, page) = bid(n, time, prices, &mut draws, &mut out);
                    let (name, page) = match channel {
                        Channel::Hot => {
                            (HOT_CHANNELS[page as usize].0.as_bytes(), HOT_CHANNELS[page as usize].1.as_bytes())
                        }
                        Channel::Other => channels.get(page),
                    };
                    out.bids.channel.bytes.extend_from_slice(name);
                    out.bids.channel.end();
                    out.bids.url.bytes.extend_from_slice(page);
                    out.bids.url.end();
                }
            }
            clock.tick();
            n += step;
        }
        out.finish()
    }
}

/// The time of every `step`th event without a division each.
struct Clock {
    /// Whole milliseconds since the base.
    ms: u64,
    /// What is beyond them, in units of 1 / rate milliseconds.
    rest: u64,
    step_ms: u64,
    step_rest: u64,
    rate: u64,
}

impl Clock {
    fn new(rate: u64, first: u64, step: u64) -> Self {
        let (at, step) = (u128::from(first) * 1_000, u128::from(step) * 1_000);
        let by = u128::from(rate);
        Self {
            ms: (at / by) as u64,
            rest: (at % by) as u64,
            step_ms: (step / by) as u64,
            step_rest: (step % by) as u64,
            rate,
        }
    }

    #[inline]
    fn tick(&mut self) {
        self.ms += self.step_ms;
        self.rest += self.step_rest;
        if self.rest >= self.rate {
            self.rest -= self.rate;
            self.ms += 1;
        }
    }
}

/// Prices in cents, even on a logarithmic scale from 100 to 100,000,000.
struct Prices(Vec<f64>);

const PRICE_STEPS_LOG2: u32 = 12;
static PRICES: LazyLock<Prices> = LazyLock::new(Prices::prepare);

impl Prices {
    /// 10^(6 / 4096), and its natural logarithm.
    const RATIO: f64 = 1.003_378_622_102_704_8;
    const LN_RATIO: f64 = 0.003_372_927_382_315_496_6;

    /// By multiplication alone: the same on every machine, unlike `pow`.
    fn prepare() -> Self {
        Self(std::iter::successors(Some(100.0), |p| Some(p * Self::RATIO)).take(1 << PRICE_STEPS_LOG2).collect())
    }

    #[inline]
    fn pick(&self, bits: u64) -> i64 {
        let step = self.0[(bits >> (64 - PRICE_STEPS_LOG2)) as usize];
        let within = ((bits << PRICE_STEPS_LOG2) >> 11) as f64 * (Self::LN_RATIO / (1_u64 << 53) as f64);
        // e^x by its series: the next term would be below a hundred-millionth.
        (step * (1.0 + within * (1.0 + 0.5 * within)) + 0.5) as i64
    }
}

/// How many people came up to event `n`, it included, less one.
#[inline]
fn last_person(n: u64) -> u64 {
    n / CYCLE
}

/// How many auctions came up to event `n`, it included, less one; `n` is not the very first.
#[inline]
fn last_auction(n: u64) -> u64 {
    (n / CYCLE * AUCTIONS_OF_CYCLE + (n % CYCLE).min(AUCTIONS_OF_CYCLE)).saturating_sub(1)
}

#[inline]
fn any_person(n: u64, bits: u64) -> u64 {
    let people = last_person(n) + 1;
    let active = people.min(ACTIVE_PEOPLE);
    people - active + u64::from(scale32(bits, (active + PEOPLE_AHEAD) as u32))
}

#[inline]
fn any_auction(n: u64, bits: u64) -> u64 {
    let last = last_auction(n);
    let least = last.saturating_sub(AUCTIONS_IN_FLIGHT);
    least + u64::from(scale32(bits, (last - least + 1 + AUCTIONS_AHEAD) as u32))
}

/// The length of the extra text that brings an event from `size` to about `average` bytes: within a fifth.
#[inline]
fn extra_len(size: usize, average: usize, bits: u64) -> usize {
    let missing = average.saturating_sub(size);
    let delta = (2 * missing + 5) / 10;
    missing - delta + scale32(bits, 2 * delta as u32) as usize
}

enum Channel {
    Hot,
    Other,
}

/// Pushes a bid but for its channel and page, which it returns.
#[inline]
fn bid(n: u64, time: i64, prices: &Prices, draws: &mut Draws, out: &mut EventColumns) -> (Channel, u32) {
    out.begin_bid();
    let bids = &mut out.bids;
    // Each draw is used in parts: bit fields of `choice`, halves of `places`.
    let (choice, places) = (draws.bits(), draws.bits());
    let auction = if choice & 1 == 0 { last_auction(n) / HOT_EVERY * HOT_EVERY } else { any_auction(n, choice >> 32) };
    bids.auction.push((FIRST_AUCTION + auction) as i64);
    let bidder = if choice & 6 != 0 { last_person(n) / HOT_EVERY * HOT_EVERY + 1 } else { any_person(n, places) };
    bids.bidder.push((FIRST_BIDDER + bidder) as i64);
    bids.price.push(prices.pick(draws.bits()));
    bids.date_time.push(time);
    // 24 bits are plenty for 28 lengths.
    let len = extra_len(32, BID_BYTES, choice & 0xffff_ff00);
    noise(draws, len, &mut bids.extra.bytes);
    bids.extra.end();
    if choice & 8 == 0 {
        (Channel::Hot, (choice >> 4 & 3) as u32)
    } else {
        (Channel::Other, scale32(places >> 32, CHANNELS))
    }
}

fn auction(n: u64, time: i64, horizon: u64, prices: &Prices, draws: &mut Draws, out: &mut EventColumns) {
    out.begin_auction();
    let auctions = &mut out.auctions;
    auctions.id.push((FIRST_AUCTION + last_auction(n)) as i64);
    let texts = (auctions.item_name.bytes.len(), auctions.description.bytes.len());
    trimmed_words(draws, 20, &mut auctions.item_name.bytes);
    auctions.item_name.end();
    trimmed_words(draws, 100, &mut auctions.description.bytes);
    auctions.description.end();
    let initial_bid = prices.pick(draws.bits());
    auctions.initial_bid.push(initial_bid);
    auctions.reserve.push(initial_bid + prices.pick(draws.bits()));
    auctions.date_time.push(time);
    auctions.expires.push(time + 1 + draws.below((2 * horizon).max(1)) as i64);
    let seller = if draws.below(4) > 0 { last_person(n) / HOT_EVERY * HOT_EVERY } else { any_person(n, draws.bits()) };
    auctions.seller.push((FIRST_PERSON + seller) as i64);
    auctions.category.push((FIRST_CATEGORY + draws.below(CATEGORIES)) as i64);
    let size = 48 + auctions.item_name.bytes.len() - texts.0 + auctions.description.bytes.len() - texts.1;
    let len = extra_len(size, AUCTION_BYTES, draws.bits());
    noise(draws, len, &mut auctions.extra.bytes);
    auctions.extra.end();
}

fn person(n: u64, time: i64, draws: &mut Draws, out: &mut EventColumns) {
    out.begin_person();
    let persons = &mut out.persons;
    persons.id.push((FIRST_PERSON + last_person(n)) as i64);
    let (first, last) = (one_of(&FIRST_NAMES, draws), one_of(&LAST_NAMES, draws));
    for part in [first, " ", last] {
        persons.name.bytes.extend_from_slice(part.as_bytes());
    }
    persons.name.end();
    let email = persons.email_address.bytes.len();
    trimmed_words(draws, 7, &mut persons.email_address.bytes);
    persons.email_address.bytes.push(b'@');
    trimmed_words(draws, 5, &mut persons.email_address.bytes);
    persons.email_address.bytes.extend_from_slice(b".com");
    let email = persons.email_address.bytes.len() - email;
    persons.email_address.end();
    let mut card = *b"0000 0000 0000 0000";
    for group in card.chunks_mut(5) {
        let mut number = draws.below(10_000);
        for digit in group[..4].iter_mut().rev() {
            *digit += (number % 10) as u8;
            number /= 10;
        }
    }
    persons.credit_card.bytes.extend_from_slice(&card);
    persons.credit_card.end();
    let (city, state) = (one_of(&CITIES, draws), one_of(&STATES, draws));
    persons.city.push(city);
    persons.state.push(state);
    persons.date_time.push(time);
    let size = 8 + first.len() + 1 + last.len() + email + card.len() + city.len() + state.len();
    let len = extra_len(size, PERSON_BYTES, draws.bits());
    noise(draws, len, &mut persons.extra.bytes);
    persons.extra.end();
}

fn one_of<'a, const N: usize>(words: &[&'a str; N], draws: &mut Draws) -> &'a str {
    words[draws.below(N as u64) as usize]
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
