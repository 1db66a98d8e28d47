//! A mail server greets and answers `EHLO` (RFC 5321), with TLS from the first byte (RFC 8314) or after
//! `STARTTLS` (RFC 3207).

mod reply;

use std::net::IpAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    super::{Unprepared, call::Call, errno, tls::Client},
    Kind,
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
        let stream = call.connect().await?;
        let ehlo = format!("EHLO {}\r\n", self.name(&stream)?);
        match &self.tls {
            None => {
                let mut talk = Talk::new(stream);
                talk.greeting(call).await?;
                talk.command(call, &ehlo, 250).await?;
                talk.quit(call).await;
            }
            Some(Begin::AtOnce(tls)) => {
                let mut talk = Talk::new(Box::new(tls.handshake(call, stream).await?));
                talk.greeting(call).await?;
                talk.command(call, &ehlo, 250).await?;
                talk.quit(call).await;
            }
            Some(Begin::Later(tls)) => {
                let mut talk = Talk::new(stream);
                talk.greeting(call).await?;
                if !talk.command(call, &ehlo, 250).await?.offers("STARTTLS") {
                    return Err(FailReason::NoTls);
                }
                talk.command(call, "STARTTLS\r\n", 220).await?;
                // What was sent in clear text must not pass for sent under TLS (RFC 3207, section 4.2).
                talk.silent(call)?;
                let mut talk = Talk::new(Box::new(tls.handshake(call, talk.stream).await?));
                // All that was known before is forgotten (the same).
                talk.command(call, &ehlo, 250).await?;
                talk.quit(call).await;
            }
        }
        Ok(())
    }
}

impl Smtp {
    /// A client without a name of its own says its address (RFC 5321, section 4.1.3).
    fn name(&self, stream: &TcpStream) -> Result<String, FailReason> {
        if let Some(name) = &self.ehlo {
            return Ok(name.clone());
        }
        let own = stream.local_addr().map_err(|_none| FailReason::Local)?;
        Ok(match own.ip() {
            IpAddr::V4(ip) => format!("[{ip}]"),
            IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
        })
    }
}

/// A connection to a mail server.
struct Talk<S> {
    stream: S,
    /// Read, and not looked at.
    unread: Vec<u8>,
}

impl<S> Talk<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    const fn new(stream: S) -> Self {
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    async fn greeting(&mut self, call: &mut Call<'_>) -> Result<(), FailReason> {
        self.reply(call, Phase::Greeting, "", 220).await.map(drop)
    }

    async fn command(
        &mut self,
        call: &mut Call<'_>,
        line: &str,
        wanted: u16,
    ) -> Result<Reply, FailReason> {
        self.silent(call)?;
        self.reply(call, Phase::Answer, line, wanted).await
    }

    /// A server that says more than it was asked for is out of step: the next reply would be taken for
    /// another's.
    fn silent(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        if self.unread.is_empty() {
            return Ok(());
        }
        call.quote(&self.unread);
        Err(FailReason::Garbled)
    }

    /// Sends a line, if it is one, and reads the reply.
    async fn reply(
        &mut self,
        call: &mut Call<'_>,
        phase: Phase,
        line: &str,
        wanted: u16,
    ) -> Result<Reply, FailReason> {
        let at = call.at;
        let failed = |error| errno::reason(&error, at, phase);
        let Self { stream, unread } = self;
        let talking = async {
            if !line.is_empty() {
                stream.write_all(line.as_bytes()).await.map_err(failed)?;
                stream.flush().await.map_err(failed)?;
            }
            loop {
                if let Some(reply) = reply::take(unread)? {
                    return Ok(reply);
                }
                if stream.read_buf(unread).await.map_err(failed)? == 0 {
                    return Err(FailReason::Reset);
                }
            }
        };
        let result = call.hold(phase, talking).await;
        if result.is_err() && !self.unread.is_empty() {
            call.quote(&self.unread);
        }
        let reply = result?;
        if reply.code == wanted {
            return Ok(reply);
        }
        call.quote(reply.text.trim_ascii_end());
        Err(FailReason::SmtpReply(reply.code))
    }

    /// Says goodbye. The answer is not waited for, and a server that does not listen any more has
    /// answered what it was asked.
    async fn quit(&mut self, call: &mut Call<'_>) {
        let Self { stream, .. } = self;
        let saying = async {
            let said = stream.write_all(b"QUIT\r\n").await;
            said.map_err(|_unheard| FailReason::Reset)?;
            stream.flush().await.map_err(|_unheard| FailReason::Reset)
        };
        let _said = call.hold(Phase::Answer, saying).await;
    }
}

#[cfg(test)]
mod tests;
