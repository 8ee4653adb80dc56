//! The words that events are made of, and random text of the benchmark's kinds.

use std::sync::LazyLock;

use crate::random::Draws;

pub(super) const FIRST_NAMES: [&str; 11] =
    ["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"];
pub(super) const LAST_NAMES: [&str; 9] =
    ["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"];
pub(super) const CITIES: [&str; 10] =
    ["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne"];
pub(super) const STATES: [&str; 6] = ["AZ", "CA", "ID", "OR", "WA", "WY"];

/// The channels of half of all bids, with the page that each links to.
pub(super) const HOT_CHANNELS: [(&str, &str); 4] = [
    ("Google", "https://www.nexmark.com/qutw/dgck/iri/item.htm?query=1"),
    ("Facebook", "https://www.nexmark.com/uhes/iqtn/gyzb/item.htm?query=1"),
    ("Baidu", "https://www.nexmark.com/a_qo/_ps/wkrk/item.htm?query=1"),
    ("Apple", "https://www.nexmark.com/ihj/pclz/moq/item.htm?query=1"),
];

/// How many other channels there are.
pub(super) const CHANNELS: u32 = 10_000;

/// Seeds the words of the vocabulary apart from those of events.
const VOCABULARY_SEED: u64 = 0x6e65_786d;

/// The other channels, `channel-0` and so on, each with its page. Prepared once: a bid only copies.
pub(super) struct Channels {
    text: Vec<u8>,
    /// Where a channel's name and page begin; the page ends where the next channel begins.
    starts: Vec<(u32, u32)>,
}

pub(super) static OTHER_CHANNELS: LazyLock<Channels> = LazyLock::new(Channels::prepare);

impl Channels {
    fn prepare() -> Self {
        let mut text = Vec::with_capacity(CHANNELS as usize * 88);
        let mut starts = Vec::with_capacity(CHANNELS as usize + 1);
        for channel in 0..CHANNELS {
            let mut draws = Draws::of(VOCABULARY_SEED, u64::from(channel));
            let name = text.len() as u32;
            text.extend_from_slice(format!("channel-{channel}").as_bytes());
            starts.push((name, text.len() as u32));
            text.extend_from_slice(b"https://www.nexmark.com");
            for _ in 0..3 {
                text.push(b'/');
                words(&mut draws, 5, b'_', &mut text);
            }
            text.extend_from_slice(b"/item.htm?query=1");
            if draws.below(10) > 0 {
                // As 32-bit arithmetic has it: the absolute value of the least number is that number (channel 1).
                let id = (channel as i32).reverse_bits().wrapping_abs();
                text.extend_from_slice(format!("&channel_id={id}").as_bytes());
            }
        }
        starts.push((text.len() as u32, text.len() as u32));
        Self { text, starts }
    }

    /// The name and the page of channel `n`, which is below [`CHANNELS`].
    #[inline]
    pub(super) fn get(&self, n: u32) -> (&[u8], &[u8]) {
        let ((name, page), (end, _)) = (self.starts[n as usize], self.starts[n as usize + 1]);
        (&self.text[name as usize..page as usize], &self.text[page as usize..end as usize])
    }
}

/// Appends 3 to `max - 1` characters: lower-case letters, and one in 13 the delimiter.
pub(super) fn words(draws: &mut Draws, max: u64, delimiter: u8, out: &mut Vec<u8>) {
    let mut left = 3 + draws.below(max - 3) as usize;
    while left > 0 {
        let bits = draws.bits();
        for shift in (0..64).step_by(16).take(left) {
            // 13 times 26 cases: a delimiter in the first 26, else any letter.
            let case = (((bits >> shift) & 0xffff) * 338) >> 16;
            out.push(if case < 26 { delimiter } else { b'a' + (case % 26) as u8 });
        }
        left = left.saturating_sub(4);
    }
}

/// As [`words`] with spaces; those at both ends are taken away.
pub(super) fn trimmed_words(draws: &mut Draws, max: u64, out: &mut Vec<u8>) {
    let start = out.len();
    words(draws, max, b' ', out);
    while out.len() > start && out.last() == Some(&b' ') {
        out.pop();
    }
    let leading = out[start..].iter().take_while(|b| **b == b' ').count();
    out.drain(start..start + leading);
}

/// Groups of six letters that a piece of noise is made of.
const GROUP: usize = 6;
/// Characters that are made at a time.
const PIECE: usize = 4 * GROUP;

/// By four random bits, a byte for each character of a piece: all ones where its group goes downwards from `a`.
const DOWNWARDS: [[u8; PIECE]; 16] = {
    let mut table = [[0; PIECE]; 16];
    let mut bits = 0;
    while bits < 16 {
        let mut at = 0;
        while at < PIECE {
            if bits >> (at / GROUP) & 1 == 1 {
                table[bits][at] = 0xff;
            }
            at += 1;
        }
        bits += 1;
    }
    table
};

/// Appends `len` characters of noise: groups of six, each going from `a` either up to `z` or down to `H`.
#[inline]
pub(super) fn noise(draws: &mut Draws, len: usize, out: &mut Vec<u8>) {
    let end = out.len() + len;
    let pieces = len.div_ceil(PIECE);
    out.reserve(pieces * PIECE);
    for _ in 0..pieces {
        let bits: [u64; PIECE / 4] = std::array::from_fn(|_| draws.bits());
        let downwards = &DOWNWARDS[(bits[0] & 15) as usize];
        // In steps of one width each, which the compiler turns into vector instructions.
        let mut lanes = [0_u16; PIECE];
        for (four, word) in lanes.chunks_exact_mut(4).zip(bits) {
            four.copy_from_slice(&[word as u16, (word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16]);
        }
        let letters = lanes.map(|lane| ((u32::from(lane) * 26) >> 16) as u16);
        let mut piece = [0_u8; PIECE];
        for ((byte, letter), down) in piece.iter_mut().zip(letters).zip(downwards) {
            // Two's complement: with all ones this is -letter.
            *byte = b'a'.wrapping_add((letter as u8 ^ down).wrapping_sub(*down));
        }
        out.extend_from_slice(&piece);
    }
    out.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_as_the_benchmark_prints_them() {
        let all = &OTHER_CHANNELS;
        let text = |n| {
            let (name, page) = all.get(n);
            (String::from_utf8(name.to_vec()).unwrap(), String::from_utf8(page.to_vec()).unwrap())
        };
        let with_id = (0..CHANNELS).filter(|n| text(*n).1.contains("&channel_id=")).count();
        assert!((8_850..9_150).contains(&with_id), "{with_id} of 10000");
        for n in 0..CHANNELS {
            let (name, page) = text(n);
            assert_eq!(name, format!("channel-{n}"));
            let rest = page.strip_prefix("https://www.nexmark.com/").unwrap();
            let (folders, query) = rest.split_once("/item.htm?query=1").unwrap();
            assert_eq!(folders.split('/').count(), 3);
            assert!(folders.split('/').all(|f| (3..=4).contains(&f.len())), "{page}");
            let expected = match n {
                5456 => "178782208".into(),
                1497 => "1684013056".into(),
                n => (n as i32).reverse_bits().wrapping_abs().to_string(),
            };
            assert!(query.is_empty() || query == format!("&channel_id={expected}"), "{page}");
        }
    }

    #[test]
    fn text_has_its_alphabet_and_length() {
        let mut spaces = 0;
        let mut letters = 0;
        for n in 0..2_000 {
            let mut out = b"before ".to_vec();
            trimmed_words(&mut Draws::of(1, n), 20, &mut out);
            let word = out.strip_prefix(b"before ").unwrap();
            assert!(word.len() < 20 && word.iter().all(|b| b.is_ascii_lowercase() || *b == b' '));
            assert!(word.first() != Some(&b' ') && word.last() != Some(&b' '));

            out.clear();
            words(&mut Draws::of(2, n), 100, b' ', &mut out);
            assert!((3..100).contains(&out.len()));
            spaces += out.iter().filter(|b| **b == b' ').count();
            letters += out.len();

            out.clear();
            noise(&mut Draws::of(3, n), n as usize, &mut out);
            assert_eq!(out.len(), n as usize);
            for group in out.chunks(GROUP) {
                assert!(group.iter().all(u8::is_ascii_lowercase) || group.iter().all(|b| (b'H'..=b'a').contains(b)));
            }
        }
        assert!((12.5..13.5).contains(&(letters as f64 / spaces as f64)));
    }
}
