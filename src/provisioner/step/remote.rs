//! A spare with a connection to it: runs our scripts and the catalogue's commands.

use std::time::Duration;

use super::{Door, Lines, error};
use crate::provisioner::{
    order::{Class, StepError},
    sealed::Masks,
    ssh::{End, Files, Ssh, SshError, quote},
};

/// A script of ours: its name in errors, its text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Script(&'static str, &'static str);

/// Texts with the parts that every script begins with.
macro_rules! script {
    (fenced $name:literal) => {
        $crate::provisioner::step::remote::Script::new(
            $name,
            concat!(
                include_str!("sh/prelude.sh"),
                include_str!("sh/fence.sh"),
                include_str!(concat!("sh/", $name, ".sh"))
            ),
        )
    };
    ($name:literal) => {
        $crate::provisioner::step::remote::Script::new(
            $name,
            concat!(
                include_str!("sh/prelude.sh"),
                include_str!(concat!("sh/", $name, ".sh"))
            ),
        )
    };
}
pub(super) use script;

impl Script {
    pub(super) const fn new(name: &'static str, text: &'static str) -> Self {
        Self(name, text)
    }
}

/// Our scripts wait for nothing longer than this, unless they are told to.
pub(super) const QUICK: Duration = Duration::from_secs(30);
/// Added to a limit on the spare before this side gives up: the answer has to travel.
const TRAVEL: Duration = Duration::from_secs(10);
/// Printed by `prelude.sh`; what precedes it is the login shell's chatter.
const MARK: &str = "@understudy\n";

/// What a catalogue command did.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u32,
    pub(super) output: String,
}

/// A command of the catalogue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command<'a> {
    pub(super) text: &'a str,
    pub(super) limit: Duration,
}

/// A connection to a spare under a fence.
#[derive(Debug)]
pub(super) struct Remote<'a> {
    ssh: Ssh,
    base: &'a str,
    fence: String,
    /// The server's name, for errors.
    pub(super) name: &'a str,
    masks: &'a Masks,
    /// Where it is left for the next step.
    lines: Option<(&'a Lines, Door)>,
}

impl<'a> Remote<'a> {
    pub(super) fn new(
        ssh: Ssh,
        base: &'a str,
        fence: u64,
        (name, masks): (&'a str, &'a Masks),
        lines: Option<(&'a Lines, Door)>,
    ) -> Self {
        // The shell counts to i64::MAX.
        let fence = fence.min(i64::MAX.unsigned_abs()).to_string();
        Self {
            ssh,
            base,
            fence,
            name,
            masks,
            lines,
        }
    }

    pub(super) async fn close(self) {
        self.ssh.close().await;
    }

    /// Leaves the connection for the next step where this one went `well`: whatever was wrong, the next try logs in.
    pub(super) async fn end(self, well: bool) {
        match self.lines {
            Some((lines, door)) if well => lines.leave(door, self.ssh),
            Some(_) | None => self.ssh.close().await,
        }
    }

    /// A path beneath the folder on the spare.
    pub(super) fn path(&self, rest: &str) -> String {
        format!("{}/{rest}", self.base)
    }

    pub(super) async fn files(&self) -> Result<Files, SshError> {
        self.ssh.files().await
    }

    /// Runs a script that only reads; what it printed.
    pub(super) async fn read(
        &self,
        script: Script,
        args: &[&str],
        limit: Duration,
    ) -> Result<String, StepError> {
        self.run(script, &[&[self.base], args].concat(), limit)
            .await
    }

    /// Runs a script that begins with `fence.sh`; what it printed.
    pub(super) async fn act(
        &self,
        script: Script,
        args: &[&str],
        limit: Duration,
    ) -> Result<String, StepError> {
        let args = [&[self.base, self.fence.as_str()], args].concat();
        self.run(script, &args, limit).await
    }

    /// Runs a catalogue command that only reads.
    pub(super) async fn ask(&self, command: Command<'_>) -> Result<Answer, StepError> {
        let seconds = whole_seconds(command.limit);
        let args = [seconds.as_str(), command.text, "", ""];
        let limit = command.limit + QUICK;
        self.answer(&self.read(script!("command"), &args, limit).await?)
    }

    /// Runs a catalogue command that changes something; its output goes to the file `output`, and
    /// the file `settles` is removed when it succeeds.
    pub(super) async fn order(
        &self,
        command: Command<'_>,
        output: &str,
        settles: &str,
    ) -> Result<Answer, StepError> {
        let seconds = whole_seconds(command.limit);
        let args = [seconds.as_str(), command.text, output, settles];
        let limit = command.limit + QUICK;
        self.answer(&self.act(script!(fenced "command"), &args, limit).await?)
    }

    fn answer(&self, said: &str) -> Result<Answer, StepError> {
        let (status, output) = said.split_once('\n').unwrap_or((said, ""));
        let status = status.parse().map_err(|_not_a_number| self.garbled(said))?;
        Ok(Answer {
            status,
            output: self.cover(output),
        })
    }

    /// What a script, a command or a file says, for people. What our own scripts say is read as it is: a secret may be a
    /// word of theirs.
    pub(super) fn cover(&self, text: &str) -> String {
        self.masks.cover(text.to_owned())
    }

    /// The same of a text whose end may have been cut off.
    pub(super) fn cover_cut(&self, text: &str) -> String {
        self.masks.cover_cut(text.to_owned())
    }

    /// A script of ours said something else than it should.
    pub(super) fn garbled(&self, said: &str) -> StepError {
        let detail = format!("not understood: {:?}", one_line(&self.cover(said)));
        error(Class::Permanent, "spare_unusable", detail)
    }

    async fn run(
        &self,
        Script(name, text): Script,
        args: &[&str],
        limit: Duration,
    ) -> Result<String, StepError> {
        if args.iter().any(|a| a.contains('\0')) {
            let detail = format!("a value for {} contains a NUL byte", self.name);
            return Err(error(Class::Permanent, "bad_value", detail));
        }
        // The far side gives up first; and ends what a lost link would leave running.
        let become_root = if self.ssh.elevates() {
            "sudo -n -H "
        } else {
            ""
        };
        let mut command = format!(
            "exec {become_root}timeout -k 5 {} sh -c {} understudy",
            whole_seconds(limit),
            quote(text)
        );
        for arg in args {
            command.push(' ');
            command.push_str(&quote(arg));
        }
        let ran = self.ssh.exec(&command, limit + TRAVEL).await?;
        let stdout = ran.stdout.text();
        let complaint = self.cover(&ran.stderr.text());
        let complaint = complaint.trim();
        // As sudo ends that refuses, and a shell that has none: a time-out or a signal says nothing of it.
        let refused = matches!(ran.end, End::Exit(1 | 127));
        if !become_root.is_empty() && !stdout.contains(MARK) && refused {
            let detail = format!(
                "{} does not let the SSH user become root: {complaint:?}; install sudo, and write                  USER ALL=(ALL) NOPASSWD: ALL into /etc/sudoers.d there",
                self.name
            );
            return Err(error(Class::Permanent, "sudo_refused", detail));
        }
        let Some((_chatter, said)) = stdout.split_once(MARK) else {
            let detail = format!(
                "{} ran no shell script for us: {:?}, {complaint:?}; does the login shell work, \
                 are coreutils there?",
                self.name, ran.end
            );
            let (class, code) = match ran.end {
                End::Exit(124 | 137) | End::Signal(_) => (Class::Transient, "command_timed_out"),
                End::Exit(_) => (Class::Permanent, "shell_unusable"),
            };
            return Err(error(class, code, detail));
        };
        let failed = |class, code, what: String| Err(error(class, code, what));
        match ran.end {
            End::Exit(0) => Ok(said.to_owned()),
            End::Exit(72) => failed(
                Class::Permanent,
                "place_failed",
                format!(
                    "files cannot be placed on {}: {}",
                    self.name,
                    one_line(&self.cover(said))
                ),
            ),
            End::Exit(75) => failed(
                Class::Transient,
                "fence_busy",
                format!("another order holds the fence on {}", self.name),
            ),
            End::Exit(76) => failed(
                Class::Permanent,
                "fence_unreadable",
                format!(
                    "{}/fence on {} holds no number: look who wrote it, and remove it if no \
                     provisioner works on this spare",
                    self.base, self.name
                ),
            ),
            End::Exit(77) => failed(
                Class::Fenced,
                "fenced",
                format!(
                    "a newer run owns {}: its fence is {}, this order's {}",
                    self.name,
                    self.cover(said.trim()),
                    self.fence
                ),
            ),
            End::Exit(124 | 137) => failed(
                Class::Transient,
                "command_timed_out",
                format!("{name}.sh did not end on {} within {limit:?}", self.name),
            ),
            end => failed(
                Class::Permanent,
                "spare_unusable",
                format!("{name}.sh failed on {} ({end:?}): {complaint}", self.name),
            ),
        }
    }
}

/// The last lines with something in them as one, short enough for a log.
pub(super) fn one_line(output: &str) -> String {
    const LINES: usize = 3;
    const CHARS: usize = 300;
    let mut last: Vec<_> = output
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .rev()
        .take(LINES)
        .collect();
    last.reverse();
    let line = last.join(" | ");
    let skip = line.chars().count().saturating_sub(CHARS);
    line.chars().skip(skip).collect()
}

/// For timeout(1): at least one, never less than asked.
pub(super) fn whole_seconds(limit: Duration) -> String {
    let up = u64::from(limit.subsec_nanos() > 0);
    (limit.as_secs() + up).max(1).to_string()
}

/// Whether `name` can be part of a path on the spare.
pub(super) fn checked_name<'n>(what: &str, name: &'n str) -> Result<&'n str, StepError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(fine) {
        let detail = format!("{what} {name:?} must consist of A-Z, a-z, 0-9, '.', '_', '+', '-'");
        return Err(error(Class::Permanent, "bad_value", detail));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_the_end_of_the_output() {
        assert_eq!(one_line("a\nb\n\n c \nd\n"), "b | c | d");
        assert_eq!(one_line(&"x".repeat(1000)).len(), 300);
        assert_eq!(one_line(""), "");
    }

    #[test]
    fn limits_are_rounded_up() {
        assert_eq!(whole_seconds(Duration::ZERO), "1");
        assert_eq!(whole_seconds(Duration::from_millis(1001)), "2");
        assert_eq!(whole_seconds(Duration::from_secs(300)), "300");
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        for name in ["", ".", "..", "a/b", "a b", "a\n"] {
            assert_eq!(checked_name("job", name).unwrap_err().code, "bad_value");
        }
        assert_eq!(checked_name("job", "r-1.d-0").unwrap(), "r-1.d-0");
    }
}
