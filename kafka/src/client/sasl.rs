//! Proving to a broker who we are.
//!
//! SaslHandshake names the mechanism, then its messages go back and forth in SaslAuthenticate, before any other request.
//! A broker may say how long that is good. It could be repeated on the same connection; ours end before instead, and another one is
//! opened: they are few, and a secret that was changed is read by the way.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::StrBytes;
use millstream_common::env::Moment;
use millstream_common::{Env, Error, Result};

use super::scram::{Hash, Scram};
use super::{Open, refused};
use crate::security::{Login, Sasl, bearer};

/// Returns when the connection is to be given up; `None`: never.
pub(super) async fn authenticate(env: &Env, open: &mut Open, broker: &str, sasl: &Sasl) -> Result<Option<Moment>> {
    let mut talk = Talk { since: env.now(), open, broker, sasl, ends: None };
    talk.begin().await?;
    match sasl {
        Sasl::Plain(Login { user, password }) => {
            talk.say(format!("\0{user}\0{}", password.read()?)).await?;
        }
        Sasl::ScramSha256(login) => talk.scram(env, Hash::Sha256, login).await?,
        Sasl::ScramSha512(login) => talk.scram(env, Hash::Sha512, login).await?,
        Sasl::OAuthBearer(from) => {
            let token = bearer(env, from).await?;
            let answer = talk.say(format!("n,,\u{1}auth=Bearer {}\u{1}\u{1}", token.value)).await?;
            if !answer.is_empty() {
                // What is wrong with the token; the broker refuses it once that was received.
                let why = String::from_utf8_lossy(&answer).into_owned();
                talk.say("\u{1}".into()).await?;
                return Err(talk.denied(&why));
            }
        }
    }
    Ok(talk.ends)
}

struct Talk<'a> {
    since: Moment,
    open: &'a mut Open,
    broker: &'a str,
    sasl: &'a Sasl,
    ends: Option<Moment>,
}

impl Talk<'_> {
    async fn begin(&mut self) -> Result<()> {
        let mechanism = self.sasl.mechanism();
        let request = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let response = self.open.send(self.broker, &request, 1).await?;
        let wrong = |what: String| Err(Error::config(what).code(1417).at(self.broker));
        match ResponseError::try_from_code(response.error_code) {
            None => Ok(()),
            Some(ResponseError::UnsupportedSaslMechanism) => {
                let offered: Vec<&str> = response.mechanisms.iter().map(StrBytes::as_str).collect();
                let offered = offered.join(", ");
                wrong(format!("the broker has SASL by {offered} here, and not by {mechanism}"))
            }
            Some(ResponseError::IllegalSaslState) => wrong("this port of the broker has no SASL".into()),
            Some(error) => Err(refused(self.broker, &format!("SASL by {mechanism}"), error)),
        }
    }

    /// Sends a message of the mechanism and gives the answer.
    async fn say(&mut self, message: String) -> Result<Bytes> {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
        // Version 1 says how long it is good, 2 nothing more.
        let response = self.open.send(self.broker, &request, 1).await?;
        match ResponseError::try_from_code(response.error_code) {
            None => {}
            Some(ResponseError::SaslAuthenticationFailed) => {
                return Err(self.denied(response.error_message.as_ref().map_or("it says no more", StrBytes::as_str)));
            }
            Some(error) => return Err(refused(self.broker, "to go on with SASL", error)),
        }
        let good_ms = u64::try_from(response.session_lifetime_ms).unwrap_or(0);
        // The last fifth is left for requests that are under way then.
        self.ends = (good_ms > 0).then(|| self.since + std::time::Duration::from_millis(good_ms / 5 * 4));
        Ok(response.auth_bytes)
    }

    async fn scram(&mut self, env: &Env, hash: Hash, login: &Login) -> Result<()> {
        // That nobody else has used it is all that is wanted of it.
        let nonce = env.unique_id();
        let scram = Scram::new(hash, &login.user, &nonce);
        let broker = self.broker;
        let wrong = |why: String| {
            Error::config(format!("the broker does not prove that it knows the user: {why}")).code(1416).at(broker)
        };
        let challenge = self.say(scram.first()).await?;
        let (answer, proof) = scram.answer(&login.password.read()?, &challenge).map_err(wrong)?;
        let last = self.say(answer).await?;
        proof.check(&last).map_err(wrong)
    }

    fn denied(&self, why: &str) -> Error {
        Error::config(format!("the broker refuses the credentials for {}: {why}", self.sasl.mechanism()))
            .code(1416)
            .at(self.broker)
            .next("correct the user and what the secret holds, or have the broker know them")
    }
}
