//! Step 3: files in their places, and the software told.
//!
//! Files are uploaded beside their places and put there by one fenced command. A missing folder is
//! made (root, 0755), as a package would make it: a spare is configured when nobody is there to do
//! it, and a path that is wrong shows in the service test. Between a file in its place and a service
//! that knows it the provisioner may die: a marker on the spare says that the service must be told.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use super::{
    checked_paths, error,
    remote::{Command, QUICK, Remote, checked_name, one_line, script},
};
use crate::provisioner::{
    order::{Class, Done, RenderedFile, StepError, VALIDATE},
    ssh::quote,
};

/// The limit of `start` and `reload`: they return when the service is told, not when it ends.
const COMMAND: Duration = Duration::from_secs(60);
/// The limit of `running`.
const RUNNING: Duration = Duration::from_secs(30);
/// Files in one command: keeps its length far below the 128 KiB that the kernel allows.
pub(super) const AT_ONCE: usize = 100;

/// Software and its commands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service<'a> {
    pub(super) software: &'a str,
    pub(super) running: Option<&'a str>,
    pub(super) start: Option<&'a str>,
    pub(super) reload: Option<&'a str>,
}

pub(super) async fn configure(
    remote: &Remote<'_>,
    files: &[RenderedFile],
    service: &Service<'_>,
) -> Result<Done, StepError> {
    let software = checked_name("software", service.software)?;
    checked_paths(files)?;
    let marker = remote.path(&format!("pending/{software}"));
    let mut differ = Vec::new();
    let mut homes = BTreeSet::new();
    let mut pending = false;
    for some in files.chunks(AT_ONCE) {
        let mut args = vec![marker.as_str()];
        args.extend(some.iter().map(|f| f.path.as_str()));
        let said = remote.read(script!("compare"), &args, QUICK).await?;
        let mut lines = said.lines();
        pending |= lines.next() == Some("pending");
        for file in some {
            let line = lines.next().ok_or_else(|| remote.garbled(&said))?;
            if line == "homeless" {
                homes.insert(folder(&file.path));
            }
            if !stands(file, line) {
                differ.push(file);
            }
        }
    }
    if files.is_empty() {
        let said = remote
            .read(script!("compare"), &[marker.as_str()], QUICK)
            .await?;
        pending = said.trim() == "pending";
    }
    for some in homes.into_iter().collect::<Vec<_>>().chunks(AT_ONCE) {
        remote.act(script!(fenced "folders"), some, QUICK).await?;
    }
    let tells = service.start.is_some() || service.reload.is_some();
    for some in differ.chunks(AT_ONCE) {
        place(remote, some, if tells { &marker } else { "" }).await?;
    }
    let changed = pending || !differ.is_empty();
    let told = tell(remote, service, changed, &marker).await?;
    let placed = match differ.len() {
        0 => "no file differed".to_owned(),
        1 => format!(
            "{} placed",
            differ.iter().map(|f| &*f.path).collect::<String>()
        ),
        n => format!("{n} files placed"),
    };
    Ok(Done {
        detail: format!("{software} on {}: {placed}, {}", remote.name, told.what),
        output: told.output,
        os: None,
    })
}

/// Whether `line` (digest, mode, owner and group by name and by number) is what `file` should be.
pub(super) fn stands(file: &RenderedFile, line: &str) -> bool {
    match line.split(' ').collect::<Vec<_>>().as_slice() {
        [digest, mode, user, group, uid, gid] => {
            *digest == file.sha256
                && u32::from_str_radix(mode, 8) == Ok(file.mode)
                && [*user, *uid].contains(&file.owner.as_str())
                && [*group, *gid].contains(&file.group.as_str())
        }
        _ => false,
    }
}

async fn place(
    remote: &Remote<'_>,
    files: &[&RenderedFile],
    marker: &str,
) -> Result<(), StepError> {
    let sftp = remote.files().await?;
    let mut uploads = Vec::new();
    for file in files {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let random = RandomState::new().hash_one(name);
        let upload = format!("{}/.{name}.understudy.{random:016x}", folder(&file.path));
        let put = sftp.create(&upload, &file.body, 0o600).await;
        uploads.push(upload.clone());
        let sound = match put {
            Ok(()) => validate(remote, file, &upload).await,
            Err(e) => Err(e.into()),
        };
        if let Err(e) = sound {
            sftp.remove(&uploads).await;
            return Err(e);
        }
    }
    let modes: Vec<_> = files.iter().map(|f| format!("{:o}", f.mode)).collect();
    let mut args = vec![marker];
    for ((file, upload), mode) in files.iter().zip(&uploads).zip(&modes) {
        args.extend([upload, &file.path, &file.owner, &file.group, mode].map(String::as_str));
    }
    let placed = remote.act(script!(fenced "place"), &args, QUICK).await;
    if placed.is_err() {
        // The script removes what it refuses to place, but not where the fence stopped it.
        sftp.remove(&uploads).await;
    }
    placed.map(drop)
}

/// Asks the file's own command whether the upload is sound, before it takes the old file's place.
async fn validate(remote: &Remote<'_>, file: &RenderedFile, upload: &str) -> Result<(), StepError> {
    let Some(command) = &file.validate else {
        return Ok(());
    };
    let text = command.replace("{file}", &quote(upload));
    let limit = VALIDATE;
    let answer = remote.ask(Command { text: &text, limit }).await?;
    if answer.status == 0 {
        return Ok(());
    }
    let detail = format!(
        "{} on {} stays as it was: `{command}` refuses the new content with status {}: {}",
        file.path,
        remote.name,
        answer.status,
        one_line(&answer.output)
    );
    Err(StepError {
        output: answer.output,
        ..error(Class::Permanent, "validate_failed", detail)
    })
}

/// What was told to the service.
struct Told {
    what: &'static str,
    output: String,
}

async fn tell(
    remote: &Remote<'_>,
    service: &Service<'_>,
    changed: bool,
    marker: &str,
) -> Result<Told, StepError> {
    let said = |what, output| Told { what, output };
    // Software that cannot say whether it runs is started each time, then reloaded if need be.
    let runs = match service.running {
        Some(text) => {
            let limit = RUNNING;
            remote.ask(Command { text, limit }).await?.status == 0
        }
        None => service.start.is_none(),
    };
    if !runs && service.start.is_none() {
        let detail = format!(
            "{} does not run on {} and has no start command in the catalogue",
            service.software, remote.name
        );
        return Err(error(Class::Permanent, "start_failed", detail));
    }
    let mut told = said(
        match service.running {
            Some(_) => "runs already",
            None => "nothing to start",
        },
        String::new(),
    );
    let due = due(service, runs, changed);
    for (n, (what, text)) in due.iter().enumerate() {
        // After a crash between two of them the last one is still to be given.
        let settles = if n + 1 == due.len() { marker } else { "" };
        let output = command(remote, service.software, what, text, settles).await?;
        let done = match *what {
            "start" => "started",
            _ => "reloaded",
        };
        told = said(done, output);
    }
    Ok(told)
}

/// The commands to give, in order. Software that cannot say whether it runs gets both.
fn due<'s>(service: &Service<'s>, runs: bool, changed: bool) -> Vec<(&'static str, &'s str)> {
    let start = service.start.filter(|_| !runs);
    let both = start.is_none() || service.running.is_none();
    let reload = service.reload.filter(|_| changed && both);
    let named = [("start", start), ("reload", reload)];
    let given = |(what, text): (_, Option<&'s str>)| Some((what, text?));
    named.into_iter().filter_map(given).collect()
}

async fn command(
    remote: &Remote<'_>,
    software: &str,
    what: &str,
    text: &str,
    marker: &str,
) -> Result<String, StepError> {
    let output = remote.path(&format!("output/{software}.{what}"));
    let limit = COMMAND;
    let answer = remote
        .order(Command { text, limit }, &output, marker)
        .await?;
    let code = match what {
        "start" => "start_failed",
        _ => "reload_failed",
    };
    match answer.status {
        0 => Ok(answer.output),
        status => {
            let how = match status {
                124 | 137 => format!("did not return within {limit:?}"),
                _ => format!("failed with status {status}"),
            };
            let last = one_line(&answer.output);
            let detail = format!("`{text}` {how} on {}: {last}", remote.name);
            Err(StepError {
                output: answer.output,
                ..error(Class::Permanent, code, detail)
            })
        }
    }
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _name)| folder)
}

pub(super) fn checked_path(path: &str) -> Result<(), StepError> {
    let sound = path.starts_with('/')
        && !path.ends_with('/')
        && !path.contains(|c: char| c.is_control())
        && !path.split('/').any(|part| part == "..");
    if sound {
        return Ok(());
    }
    let detail = format!("{path:?} is no absolute path of a file");
    Err(error(Class::Permanent, "bad_value", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reload_comes_after_start_and_settles_the_matter() {
        let service = |running| Service {
            software: "nginx",
            running,
            start: Some("a"),
            reload: Some("b"),
        };
        let both = vec![("start", "a"), ("reload", "b")];
        assert_eq!(due(&service(None), false, true), both);
        assert_eq!(due(&service(None), false, false), both[..1]);
        assert_eq!(due(&service(Some("r")), false, true), both[..1]);
        assert_eq!(due(&service(Some("r")), true, true), both[1..]);
        assert_eq!(due(&service(Some("r")), true, false), []);
    }

    #[test]
    fn a_file_stands_only_if_all_is_equal() {
        let file = RenderedFile {
            path: "/etc/x".into(),
            body: Vec::new(),
            sha256: "ab".into(),
            mode: 0o640,
            owner: "root".into(),
            group: "www-data".into(),
            validate: None,
            secrets: Vec::new(),
        };
        assert!(stands(&file, "ab 640 root www-data 0 33"));
        for line in [
            "ac 640 root www-data 0 33",
            "ab 644 root www-data 0 33",
            "ab 640 nobody www-data 65534 33",
            "ab 640 root root 0 0",
            "absent",
            "homeless",
            "",
        ] {
            assert!(!stands(&file, line), "{line}");
        }
    }
}
