//! A mail server greets and answers `EHLO` (RFC 5321), with TLS from the first byte (RFC 8314) or after
//! `STARTTLS` (RFC 3207).

mod reply;

use std::net::IpAddr;

use tokio_util::bytes::BytesMut;

use super::{
    super::{Unprepared, call::Call, tls::Client},
    Kind,
    talk::Talk,
};
use crate::model::{FailReason, Phase, SmtpCheck, SmtpTls};
use reply::Reply;

/// When TLS begins.
#[derive(Debug)]
enum Begin {
    AtOnce(Client),
    Later(Client),
}

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Smtp {
    ehlo: Option<String>,
    tls: Option<Begin>,
}

impl Kind for Smtp {
    type Options = SmtpCheck;

    fn prepare(options: &SmtpCheck) -> Result<Self, Unprepared> {
        let tls = options.tls.as_ref().map(|tls| match tls {
            SmtpTls::Implicit(options) => Client::prepare(options, &[]).map(Begin::AtOnce),
            SmtpTls::Starttls(options) => Client::prepare(options, &[]).map(Begin::Later),
        });
        Ok(Self {
            ehlo: options.ehlo.clone(),
            tls: tls.transpose()?,
        })
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let mut talk = Talk::begin(call).await?;
        let ehlo = self.ehlo(&talk)?;
        if let Some(Begin::AtOnce(tls)) = &self.tls {
            talk = talk.encrypt(tls).await?;
        }
        say(&mut talk, Phase::Greeting, "", 220).await?;
        let answer = say(&mut talk, Phase::Answer, &ehlo, 250).await?;
        if let Some(Begin::Later(tls)) = &self.tls {
            if !answer.offers("STARTTLS") {
                return Err(FailReason::NoTls);
            }
            say(&mut talk, Phase::Answer, "STARTTLS\r\n", 220).await?;
            talk = talk.encrypt(tls).await?;
            // What was known before is forgotten (RFC 3207, section 4.2).
            say(&mut talk, Phase::Answer, &ehlo, 250).await?;
        }
        talk.end(b"QUIT\r\n").await;
        Ok(())
    }
}

impl Smtp {
    /// A client without a name of its own says its address (RFC 5321, section 4.1.3).
    fn ehlo(&self, talk: &Talk<'_, '_>) -> Result<String, FailReason> {
        if let Some(name) = &self.ehlo {
            return Ok(format!("EHLO {name}\r\n"));
        }
        let own = talk.own().map_err(|_none| FailReason::Local)?;
        Ok(match own.ip() {
            IpAddr::V4(ip) => format!("EHLO [{ip}]\r\n"),
            IpAddr::V6(ip) => format!("EHLO [IPv6:{ip}]\r\n"),
        })
    }
}

/// Sends a line, if it is one, and reads the reply, which has to have this code.
async fn say(
    talk: &mut Talk<'_, '_>,
    phase: Phase,
    line: &str,
    wanted: u16,
) -> Result<Reply, FailReason> {
    let understand = |seen: &mut BytesMut| {
        let reply = reply::take(seen)?;
        Ok(reply.map(|reply| (reply, seen.clone())))
    };
    let (reply, more) = talk.ask(phase, line.as_bytes(), understand).await?;
    if reply.code != wanted {
        talk.call.quote(reply.text.trim_ascii_end());
        return Err(FailReason::SmtpReply(reply.code));
    }
    if !more.is_empty() {
        // The next reply would be taken for another's; and what comes in clear text after the answer
        // to STARTTLS must not pass for sent under TLS (RFC 3207, section 4.2; CVE-2011-0411).
        talk.call.quote(&more);
        return Err(FailReason::Garbled);
    }
    Ok(reply)
}

#[cfg(test)]
mod tests;
