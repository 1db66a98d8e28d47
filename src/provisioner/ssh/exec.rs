//! Commands.

use std::{collections::VecDeque, time::Duration};

use russh::ChannelMsg;
use tokio::time::timeout;

use super::{Ssh, SshError};

/// Kept of each of stdout and stderr: this much from the beginning and as much from the end. All that
/// a job's wrapper keeps fits in.
const KEPT: usize = 160 * 1024;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Exit(u32),
    /// By this signal, without `SIG`.
    Signal(String),
}

/// A command that ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// How.
    pub end: End,
    /// What it printed.
    pub stdout: Captured,
    /// What it complained.
    pub stderr: Captured,
}

/// Output, bounded: its beginning and its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    lost: usize,
}

impl Captured {
    /// Takes more output.
    pub fn push(&mut self, data: &[u8]) {
        let room = KEPT.saturating_sub(self.head.len()).min(data.len());
        let (first, rest) = data.split_at(room);
        self.head.extend_from_slice(first);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..over);
        self.lost += over;
    }

    /// As text; says how much was left out.
    #[must_use]
    pub fn text(&self) -> String {
        let mut all = self.head.clone();
        if self.lost > 0 {
            all.extend_from_slice(format!("\n[... {} bytes left out ...]\n", self.lost).as_bytes());
        }
        all.extend(&self.tail);
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// Quotes for a POSIX shell: SSH hands one string to the login shell, whatever one means by it.
#[must_use]
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl Ssh {
    /// Runs `command` with an empty stdin. A command that outlives `limit` or the link goes on
    /// running there: sshd ends nothing.
    ///
    /// # Errors
    ///
    /// `LinkLost` where the connection ended before the command's status came, `CommandTimedOut`,
    /// `ExecRefused`.
    pub async fn exec(&self, command: &str, limit: Duration) -> Result<Ran, SshError> {
        match timeout(limit, self.exec_unbounded(command)).await {
            Ok(ran) => ran,
            Err(_elapsed) => Err(SshError::CommandTimedOut {
                peer: self.peer,
                limit,
            }),
        }
    }

    async fn exec_unbounded(&self, command: &str) -> Result<Ran, SshError> {
        let peer = self.peer;
        let lost = |e| SshError::from_russh(peer, e);
        let channel = self.handle.channel_open_session().await.map_err(lost)?;
        // Reading and writing apart: a full window in one direction must not stop the other.
        let (mut read, write) = channel.split();
        write.exec(true, command).await.map_err(lost)?;
        write.eof().await.map_err(lost)?;
        let (mut stdout, mut stderr, mut end) = (Captured::default(), Captured::default(), None);
        while let Some(message) = read.wait().await {
            match message {
                ChannelMsg::Failure => return Err(SshError::ExecRefused { peer }),
                ChannelMsg::Data { data } => stdout.push(&data),
                ChannelMsg::ExtendedData { data, ext: 1 } => stderr.push(&data),
                ChannelMsg::ExitStatus { exit_status } => end = Some(End::Exit(exit_status)),
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    end = Some(End::Signal(format!("{signal_name:?}")));
                }
                // Eof is not the end: the status usually follows it.
                ChannelMsg::Close => break,
                _ => {}
            }
        }
        // Dropping a channel does not close it. That the link is gone by now is no failure.
        drop(write.close().await);
        // A channel that ends without a status is a lost link, never a success.
        let end = end.ok_or(SshError::LinkLost { peer, source: None })?;
        Ok(Ran {
            end,
            stdout,
            stderr,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_keeps_both_ends_and_counts_the_rest() {
        let mut c = Captured::default();
        for chunk in [vec![b'a'; KEPT], vec![b'b'; 10], vec![b'c'; KEPT]] {
            c.push(&chunk);
        }
        let text = c.text();
        assert!(text.starts_with("aaa") && text.ends_with("ccc"));
        assert!(text.contains("\n[... 10 bytes left out ...]\n"), "10 b");
        assert!(
            !text.contains('b') || text.matches('b').count() == 1,
            "the word bytes"
        );
    }

    #[test]
    fn quoting_survives_quotes() {
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
    }
}
