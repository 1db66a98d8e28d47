//! A server looked at without touching it: its system, its software, its files.

use std::{future::Future, pin::Pin};

use super::{
    Prober, SshHands, checked_paths,
    configure::{AT_ONCE, stands},
    install::CHECK,
    remote::{Command, QUICK, Remote, garbled, one_line, script},
};
use crate::{
    model::inventory::Server,
    provisioner::{
        order::{RenderedFile, StepError},
        sealed::Masks,
        text_diff::diff,
    },
};

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Operating system.
    pub os: String,
    /// (software, check command).
    pub installed: Vec<(String, String)>,
    /// Files, with their secrets' values.
    pub files: Vec<RenderedFile>,
    /// What must not be seen.
    pub masks: Masks,
}

/// Something that is not as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `os`, `software nginx`, or a file's path.
    pub object: String,
    /// What it is instead.
    pub detail: String,
    /// Of a file's content, line by line.
    pub diff: String,
}

/// What takes its time.
pub type Looking<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<Difference>, StepError>> + Send + 'a>>;

/// Whoever can look at a server.
pub trait Look: Send + Sync {
    /// All that differs from what is wanted.
    fn look<'a>(&'a self, server: &'a Server, wanted: &'a Wanted) -> Looking<'a>;
}

impl<P: Prober> Look for SshHands<P> {
    fn look<'a>(&'a self, server: &'a Server, wanted: &'a Wanted) -> Looking<'a> {
        Box::pin(async move {
            let ssh = self.connect(server, server.pins()).await?;
            // Nothing is changed: no fence is needed.
            let remote = Remote::new(ssh, &self.base, 0, &server.name, &wanted.masks);
            let found = look(&remote, wanted).await;
            remote.close().await;
            found
        })
    }
}

async fn look(remote: &Remote<'_>, wanted: &Wanted) -> Result<Vec<Difference>, StepError> {
    let mut found = Vec::new();
    let mut differs = |object: &str, detail: String, diff: String| {
        found.push(Difference {
            object: object.to_owned(),
            detail,
            diff,
        });
    };
    let os = remote.read(script!("os"), &[], QUICK).await?;
    if os.trim() != wanted.os {
        let detail = format!("{}, the role needs {}", os.trim(), wanted.os);
        differs("os", detail, String::new());
    }
    for (software, text) in &wanted.installed {
        let limit = CHECK;
        let answer = remote.ask(Command { text, limit }).await?;
        if answer.status != 0 {
            let detail = format!(
                "not installed: `{text}` ends with status {}: {}",
                answer.status,
                one_line(&answer.output)
            );
            differs(&format!("software {software}"), detail, String::new());
        }
    }
    checked_paths(&wanted.files)?;
    for some in wanted.files.chunks(AT_ONCE) {
        // A marker that is never there: whether the software was told is not asked.
        let marker = remote.path("pending/.");
        let mut args = vec![marker.as_str()];
        args.extend(some.iter().map(|f| f.path.as_str()));
        let said = remote.read(script!("compare"), &args, QUICK).await?;
        let mut lines = said.lines().skip(1);
        for file in some {
            let line = lines.next().ok_or_else(|| garbled(&said))?;
            if stands(file, line) {
                continue;
            }
            let there = !["absent", "homeless"].contains(&line);
            let old = if there {
                remote
                    .read(script!("content"), &[&file.path], QUICK)
                    .await?
            } else {
                String::new()
            };
            let new = wanted
                .masks
                .cover(String::from_utf8_lossy(&file.body).into());
            differs(&file.path, how(file, line), diff(&old, &new));
        }
    }
    Ok(found)
}

/// How a file differs, by `compare.sh`'s line.
fn how(file: &RenderedFile, line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let [digest, mode, user, group, ..] = words.as_slice() else {
        return "not there".to_owned();
    };
    let mut all = Vec::new();
    if *digest != file.sha256 {
        all.push("another content".to_owned());
    }
    if u32::from_str_radix(mode, 8) != Ok(file.mode) {
        all.push(format!("mode {mode}, not {:o}", file.mode));
    }
    let owner = format!("{user}:{group}");
    let wanted = format!("{}:{}", file.owner, file.group);
    if owner != wanted {
        all.push(format!("owner {owner}, not {wanted}"));
    }
    all.join(", ")
}
