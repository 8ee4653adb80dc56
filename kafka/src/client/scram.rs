//! SCRAM without channel binding, the client's side (RFC 5802, RFC 7677): what is said and how it is proved. Does no I/O.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::{digest, hmac, pbkdf2};

/// RFC 7677 wants so many rounds at least: fewer let a false broker try passwords quickly.
const ROUNDS_MIN: u32 = 4_096;
/// A false broker could keep us busy with more. Apache Kafka takes 16,384 at most.
const ROUNDS_MAX: u32 = 200_000;

/// "n": no channel binding, and nobody else's rights are asked for.
const HEADER: &str = "n,,";

#[derive(Clone, Copy)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn hmac(self, key: &[u8]) -> hmac::Key {
        hmac::Key::new(
            match self {
                Self::Sha256 => hmac::HMAC_SHA256,
                Self::Sha512 => hmac::HMAC_SHA512,
            },
            key,
        )
    }

    fn digest(self, bytes: &[u8]) -> digest::Digest {
        digest::digest(
            match self {
                Self::Sha256 => &digest::SHA256,
                Self::Sha512 => &digest::SHA512,
            },
            bytes,
        )
    }

    fn salted(self, password: &str, salt: &[u8], rounds: NonZeroU32) -> Vec<u8> {
        let (algorithm, len) = match self {
            Self::Sha256 => (pbkdf2::PBKDF2_HMAC_SHA256, 32),
            Self::Sha512 => (pbkdf2::PBKDF2_HMAC_SHA512, 64),
        };
        let mut out = vec![0; len];
        pbkdf2::derive(algorithm, rounds, salt, password.as_bytes(), &mut out);
        out
    }
}

/// One exchange.
pub(super) struct Scram<'a> {
    hash: Hash,
    nonce: &'a str,
    first_bare: String,
}

/// By this the broker shows that it knows the password.
pub(super) struct Proof {
    key: hmac::Key,
    said: String,
}

impl<'a> Scram<'a> {
    /// `nonce` was never used before.
    pub(super) fn new(hash: Hash, user: &str, nonce: &'a str) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Self { hash, nonce, first_bare: format!("n={user},r={nonce}") }
    }

    /// What is said first.
    pub(super) fn first(&self) -> String {
        format!("{HEADER}{}", self.first_bare)
    }

    /// What is said to the broker's challenge, and how its last word is judged.
    pub(super) fn answer(&self, password: &str, challenge: &[u8]) -> Result<(String, Proof), String> {
        let challenge = std::str::from_utf8(challenge).map_err(|e| e.to_string())?;
        let mut parts = challenge.split(',');
        let mut part = |name: &str| {
            let found = parts.next().and_then(|p| p.strip_prefix(name)?.strip_prefix('='));
            found.ok_or_else(|| format!("its challenge has no '{name}' where it is to be"))
        };
        let (nonce, salt, rounds) = (part("r")?, part("s")?, part("i")?);
        if nonce.strip_prefix(self.nonce).is_none_or(str::is_empty) {
            return Err("its challenge is to somebody else".into());
        }
        let salt = BASE64_STANDARD.decode(salt).map_err(|e| format!("the salt: {e}"))?;
        let rounds = rounds.parse().ok().filter(|rounds| (ROUNDS_MIN..=ROUNDS_MAX).contains(rounds));
        let rounds = rounds
            .and_then(NonZeroU32::new)
            .ok_or_else(|| format!("the number of rounds is not within {ROUNDS_MIN} and {ROUNDS_MAX}"))?;

        let last = format!("c={},r={nonce}", BASE64_STANDARD.encode(HEADER));
        let said = format!("{},{challenge},{last}", self.first_bare);
        let salted = self.hash.hmac(&self.hash.salted(password, &salt, rounds));
        let key = hmac::sign(&salted, b"Client Key");
        let signature = hmac::sign(&self.hash.hmac(self.hash.digest(key.as_ref()).as_ref()), said.as_bytes());
        let proof: Vec<u8> = key.as_ref().iter().zip(signature.as_ref()).map(|(k, s)| k ^ s).collect();
        let answer = format!("{last},p={}", BASE64_STANDARD.encode(proof));
        let key = self.hash.hmac(hmac::sign(&salted, b"Server Key").as_ref());
        Ok((answer, Proof { key, said }))
    }
}

impl Proof {
    /// Whether the broker's last word proves it.
    pub(super) fn check(&self, last: &[u8]) -> Result<(), String> {
        let last = std::str::from_utf8(last).map_err(|e| e.to_string())?;
        let word = last.split(',').next().unwrap_or_default();
        if let Some(error) = word.strip_prefix("e=") {
            return Err(error.to_owned());
        }
        let signature = word.strip_prefix("v=").and_then(|v| BASE64_STANDARD.decode(v).ok()).ok_or("no signature")?;
        hmac::verify(&self.key, self.said.as_bytes(), &signature).map_err(|_| "a wrong signature".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const CHALLENGE: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn exchange(hash: Hash, proof: &str, last: &str) {
        let scram = Scram::new(hash, "user", NONCE);
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (answer, theirs) = scram.answer("pencil", CHALLENGE.as_bytes()).unwrap();
        assert_eq!(answer, format!("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p={proof}"));
        theirs.check(last.as_bytes()).unwrap();
        let (_, other) = scram.answer("pencils", CHALLENGE.as_bytes()).unwrap();
        assert_eq!(other.check(last.as_bytes()).unwrap_err(), "a wrong signature");
        assert_eq!(theirs.check(b"e=other-error").unwrap_err(), "other-error");
        for wrong in ["", "v=", "v=AAAA", "p=AAAA", "v=?"] {
            assert!(theirs.check(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    /// RFC 7677, section 3.
    #[test]
    fn the_exchange_of_the_rfc() {
        exchange(
            Hash::Sha256,
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        );
    }

    /// The same with the other hash; values of an implementation in Python (hashlib, hmac), which gives those of the RFC above.
    #[test]
    fn the_same_exchange_by_sha_512() {
        exchange(
            Hash::Sha512,
            "gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOMw+3R2xNJdMNnzMlTN8PPC6wdp6dybEmDYXYTxwnYPJQ==",
            "v=ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==",
        );
    }

    #[test]
    fn a_name_is_escaped() {
        assert_eq!(Scram::new(Hash::Sha256, "a=b,c", "x").first(), "n,,n=a=3Db=2Cc,r=x");
    }

    #[test]
    fn a_challenge_that_cannot_be_is_refused() {
        let scram = Scram::new(Hash::Sha256, "user", "abc");
        let answer = |challenge: &str| scram.answer("pencil", challenge.as_bytes()).map(|(answer, _)| answer);
        assert!(answer("r=abcd,s=AAAA,i=4096").is_ok());
        assert!(answer("r=abcd,s=AAAA,i=4096,x=more").is_ok());
        for wrong in [
            "",
            "r=abc,s=AAAA,i=4096",
            "r=xyz,s=AAAA,i=4096",
            "r=abcd,s=?,i=4096",
            "r=abcd,s=AAAA,i=4095",
            "r=abcd,s=AAAA,i=4000000000",
            "r=abcd,s=AAAA,i=-1",
            "m=x,r=abcd,s=AAAA,i=4096",
            "r=abcd,s=AAAA",
        ] {
            assert!(answer(wrong).is_err(), "{wrong}");
        }
    }
}
