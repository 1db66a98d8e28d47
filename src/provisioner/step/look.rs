//! A server looked at without touching it: its system, its software, its files.

use std::{future::Future, pin::Pin};

use super::{
    Prober, SshHands, checked_paths,
    configure::{AT_ONCE, stands},
    install::CHECK,
    remote::{Command, QUICK, Remote, one_line, script},
};
use crate::{
    model::inventory::Server,
    provisioner::{
        order::{RenderedFile, StepError},
        sealed::Masks,
        text_diff::diff,
    },
};

/// What `content.sh` shows of a file: one that is not shorter may have been cut.
const SHOWN: usize = 65536;

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
            let remote = Remote::new(ssh, &self.base, 0, (&server.name, &wanted.masks), None);
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
            let line = lines.next().ok_or_else(|| remote.garbled(&said))?;
            if stands(file, line) {
                continue;
            }
            let there = !["absent", "homeless"].contains(&line);
            // What was a secret before it was changed is not known here: nothing can cover it.
            if !file.secrets.is_empty() {
                differs(&file.path, how(file, line), String::new());
                continue;
            }
            let old = if there {
                let said = remote
                    .read(script!("content"), &[&file.path], QUICK)
                    .await?;
                match said.len() < SHOWN {
                    true => remote.cover(&said),
                    false => remote.cover_cut(&said),
                }
            } else {
                String::new()
            };
            let new = remote.cover(&String::from_utf8_lossy(&file.body));
            differs(&file.path, how(file, line), diff(&old, &new));
        }
    }
    Ok(found)
}

/// How a file differs, by `compare.sh`'s line.
fn how(file: &RenderedFile, line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let [digest, mode, user, group, uid, gid] = words.as_slice() else {
        return "not there".to_owned();
    };
    let mut all = Vec::new();
    if *digest != file.sha256 {
        all.push("another content".to_owned());
    }
    if u32::from_str_radix(mode, 8) != Ok(file.mode) {
        all.push(format!("mode {mode}, not {:o}", file.mode));
    }
    let owned = [*user, *uid].contains(&file.owner.as_str());
    if !owned || ![*group, *gid].contains(&file.group.as_str()) {
        let (owner, wanted) = (&file.owner, &file.group);
        all.push(format!("owner {user}:{group}, not {owner}:{wanted}"));
    }
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_by_number_is_the_same_one() {
        let file = RenderedFile {
            path: "/etc/x".into(),
            body: Vec::new(),
            sha256: "ab".into(),
            mode: 0o640,
            owner: "0".into(),
            group: "www-data".into(),
            validate: None,
            secrets: Vec::new(),
        };
        assert_eq!(how(&file, "cd 640 root www-data 0 33"), "another content");
        assert_eq!(
            how(&file, "ab 600 nobody www-data 65534 33"),
            "mode 600, not 640, owner nobody:www-data, not 0:www-data"
        );
        assert_eq!(how(&file, "absent"), "not there");
    }
}
