//! A MySQL or MariaDB server lets somebody in and answers `COM_PING`.
//!
//! A connection that ends between the greeting and the client's answer counts as a handshake error, and
//! after `max_connect_errors` of them (100 where nobody says so) without a login between them the server
//! shuts its door to this host (error 1129) until `FLUSH HOSTS`: 'only protocol handshake errors are
//! counted' (manual, `SUM_CONNECT_ERRORS` of the table `host_cache`). To read the greeting and go away
//! is therefore no check. Without credentials the login is gone through to its end instead, in the name
//! of `understudy` and without a password: that this one is refused is the proof of life, and no
//! handshake error. Where `log_warnings` of MariaDB is 2 or more (as it is where nobody says so), or
//! `log_error_verbosity` of MySQL 3, each such refusal is a line in the server's log, and it counts in
//! `Aborted_connects`: credentials, or a user `understudy` without rights and password, avoid that.

mod wire;

use super::{
    super::{Unprepared, call::Call},
    Kind,
    login::{Access, NOBODY},
    talk::Talk,
};
use crate::model::{FailReason, LoginCheck, Phase};
use wire::{Greeting, Opening, Refusal, Reply, packet};

const COM_QUIT: u8 = 0x01;
const COM_PING: u8 = 0x0e;

/// `caching_sha2_password` says this way that the proof sufficed, ...
const PROOF_SUFFICES: [u8; 1] = [3];
/// ... or that it wants the password itself.
const PASSWORD_PLEASE: [u8; 1] = [4];

/// Refusals of a login: access denied, to the database, without a password.
const REFUSED: [u16; 3] = [1045, 1044, 1698];

/// Further refusals of somebody who is not known, from a server that is well: old kind of password,
/// locked account (MySQL's and MariaDB's number), TLS required, method unknown.
const NOT_YOU: [u16; 5] = [1251, 3118, 4151, 3159, 2059];

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Mysql(Access);

impl Kind for Mysql {
    type Options = LoginCheck;

    fn prepare(options: &LoginCheck) -> Result<Self, Unprepared> {
        Access::prepare(options, &[]).map(Self)
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let mut talk = Talk::begin(call).await?;
        let first = talk.ask(Phase::Greeting, &[], packet).await?;
        let greeting = match wire::opening(&first.body) {
            Some(Opening::Greeting(greeting)) => greeting,
            Some(Opening::Refusal(refusal)) => return Err(refused(&mut talk, &refusal)),
            None => {
                talk.call.quote(&first.body);
                return Err(FailReason::Garbled);
            }
        };
        if greeting.capabilities & wire::NEEDED != wire::NEEDED {
            return Err(unknown(
                &mut talk,
                "a kind of login from before version 4.1",
            ));
        }
        let mut sequence = first.sequence.wrapping_add(1);
        if let Some(client) = &self.0.tls {
            if greeting.capabilities & wire::CLIENT_SSL == 0 {
                return Err(FailReason::NoTls);
            }
            let request = wire::ssl_request(self.0.database.is_some());
            let request = wire::framed(sequence, &request);
            sequence = sequence.wrapping_add(1);
            talk.ask(Phase::Tls, &request, |_| Ok(Some(()))).await?;
            talk = talk.encrypt(client).await?;
        }
        let in_session = self.log_in(&mut talk, &greeting, sequence).await?;
        if in_session && self.0.login.is_some() {
            ping(&mut talk).await?;
        }
        if in_session {
            talk.end(&wire::framed(0, &[COM_QUIT])).await;
        }
        Ok(())
    }
}

impl Mysql {
    /// Goes through a login. Whether there is a session now: without credentials there need not be one.
    async fn log_in(
        &self,
        talk: &mut Talk<'_, '_>,
        greeting: &Greeting,
        mut sequence: u8,
    ) -> Result<bool, FailReason> {
        let mut trial = Trial {
            password: self.0.login.as_ref().map(|login| login.password.as_bytes()),
            encrypted: talk.is_encrypted(),
            method: greeting.method.clone(),
        };
        // What would be sent in clear waits until the server asks for it.
        let proof = match &*trial.method {
            wire::NATIVE | wire::CACHING => trial.proof(&greeting.salt),
            _ => None,
        };
        if proof.is_none() {
            trial.method = wire::NATIVE.to_vec();
        }
        let proof = proof.or_else(|| trial.proof(&greeting.salt));
        let response = wire::response(
            trial.encrypted,
            self.0.login.as_ref().map_or(NOBODY, |login| &login.user),
            &proof.unwrap_or_default(),
            self.0.database.as_deref(),
            &trial.method,
        );
        let mut out = wire::framed(sequence, &response);
        loop {
            let answer = talk.ask(Phase::Login, &out, packet).await?;
            sequence = answer.sequence.wrapping_add(1);
            let answer = match wire::reply(&answer.body) {
                Some(Reply::Ok) => return Ok(true),
                Some(Reply::Refusal(refusal)) => {
                    let known = REFUSED.contains(&refusal.code) || NOT_YOU.contains(&refusal.code);
                    if self.0.login.is_none() && known {
                        return Ok(false);
                    }
                    return Err(refused(talk, &refusal));
                }
                Some(Reply::Switch { method, salt }) => {
                    trial.method = method;
                    trial.proof(&salt)
                }
                Some(Reply::More(data)) if data == PROOF_SUFFICES => {
                    out.clear();
                    continue;
                }
                Some(Reply::More(data)) if data == PASSWORD_PLEASE => trial.in_clear(),
                Some(Reply::More(_) | Reply::OldSwitch) => None,
                None => {
                    talk.call.quote(&answer.body);
                    return Err(FailReason::Garbled);
                }
            };
            out = match answer {
                Some(answer) => wire::framed(sequence, &answer),
                // Whoever has no password need not know how it is said.
                None if self.0.login.is_none() => wire::framed(sequence, &[]),
                None => {
                    let method = String::from_utf8_lossy(&trial.method).into_owned();
                    return Err(unknown(
                        talk,
                        &format!("{method}, which takes TLS or is not known here"),
                    ));
                }
            };
        }
    }
}

/// One login on its way.
#[derive(Debug)]
struct Trial<'a> {
    password: Option<&'a [u8]>,
    encrypted: bool,
    method: Vec<u8>,
}

impl Trial<'_> {
    /// The proof that the method wants, if it is known and nobody could learn the password by it.
    fn proof(&self, salt: &[u8]) -> Option<Vec<u8>> {
        let password = self.password.unwrap_or_default();
        match &*self.method {
            wire::NATIVE => Some(wire::native(password, salt)),
            wire::CACHING => Some(wire::caching(password, salt)),
            wire::SHA256 | wire::CLEAR => self.in_clear(),
            _ => None,
        }
    }

    fn in_clear(&self) -> Option<Vec<u8>> {
        match self.password {
            Some(password) if self.encrypted => Some(wire::clear(password)),
            Some(_) => None,
            None => Some(wire::clear(&[])),
        }
    }
}

async fn ping(talk: &mut Talk<'_, '_>) -> Result<(), FailReason> {
    let ping = wire::framed(0, &[COM_PING]);
    let answer = talk.ask(Phase::Answer, &ping, packet).await?;
    match wire::reply(&answer.body) {
        Some(Reply::Ok) => Ok(()),
        Some(Reply::Refusal(refusal)) => Err(refused(talk, &refusal)),
        _ => {
            talk.call.quote(&answer.body);
            Err(FailReason::Garbled)
        }
    }
}

fn refused(talk: &mut Talk<'_, '_>, refusal: &Refusal) -> FailReason {
    talk.call.quote(&refusal.text);
    match REFUSED.contains(&refusal.code) {
        true => FailReason::LoginRefused,
        false => FailReason::Mysql(refusal.code),
    }
}

fn unknown(talk: &mut Talk<'_, '_>, what: &str) -> FailReason {
    talk.call.note(format_args!("the server wants {what}"));
    FailReason::LoginMethod
}

#[cfg(test)]
mod tests;
