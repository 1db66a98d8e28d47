//! `understudy ipvs restore`: a file is read whole, compared with the table, and only the difference
//! is written: what grows first, and what could not grow is not shrunk.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    Failure, block_on,
    changes::{self, Tally},
    connect, count, names, note, plain, read, say, write,
};
use crate::{
    import::ipvsadm::{self, Saved},
    ipvs,
    model::{ForwardMethod, ServiceKey, Step, Table},
    reconcile::plan,
    telemetry::Chain,
};

/// The table is read again, and what is left done, when somebody else changes it meanwhile.
const PASSES: usize = 3;

/// What to restore, and how far.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// What ipvs save, ipvsadm -S or -Sn wrote; without it, or with -, the standard input
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    file: PathBuf,
    /// Only show what would change, and change nothing
    #[arg(long)]
    diff: bool,
    /// Remove the services that the file does not name
    #[arg(long)]
    exact: bool,
    /// Keep connection thresholds of which the file says nothing
    #[arg(long)]
    keep_thresholds: bool,
    #[command(flatten)]
    guard: write::Guard,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    let (name, text) = text(&a.file)?;
    let saved = ipvsadm::parse(&name, &text, &names::System::default())?;
    if saved.table.is_empty() {
        if !a.exact {
            return say("the file names no virtual service: nothing to change\n");
        }
        return Err(Failure::Failed(format!(
            "{}: names no virtual service, and --exact would remove all: nothing was changed; ipvs flush does that",
            name.display()
        )));
    }
    let file = File { name: &name, saved };
    block_on(async {
        let mut ipvs = connect().await?;
        let mut done = Tally::default();
        let mut hand = a.guard.begin();
        for pass in 1.. {
            let read = ipvs.table().await;
            let live = plain(&read.map_err(|e| unread(&e, pass, done))?);
            let target = file.target(&live, a.exact, a.keep_thresholds);
            let (mut steps, mut shrink) = plan::phases(&live, &target.table);
            let grow = steps.len();
            steps.append(&mut shrink);
            if pass == 1 {
                for warning in &target.warnings {
                    note(warning);
                }
            }
            if a.diff {
                return file.show(&steps, &live, &target, &a.guard);
            }
            let mut permitted = hand.permit(&mut ipvs, &steps, &so_far(pass, done))?;
            let shrink = steps.split_off(grow);
            let failed = apply(&mut permitted, [steps, shrink], &mut done).await;
            if failed.is_empty() {
                let what = match done.all() {
                    0 => "nothing to change".to_owned(),
                    _ => said(done),
                };
                return say(&format!("{what}{}\n", target.rest()));
            }
            // Somebody else writes: the picture was wrong, not the wish.
            let again = failed
                .iter()
                .all(|f| f.why.as_ref().is_none_or(ipvs::Error::contradicts_reading));
            if !again || pass == PASSES {
                return Err(Failure::Failed(file.failure(&failed, done)));
            }
        }
        Ok(())
    })
}

/// The name for messages, and the text.
fn text(path: &Path) -> Result<(PathBuf, String), Failure> {
    if path != "-" {
        return Ok((path.to_owned(), read(path)?));
    }
    let mut text = String::new();
    let name = PathBuf::from("standard input");
    match io::stdin().read_to_string(&mut text) {
        Ok(_) => Ok((name, text)),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(Failure::Wrong(
            "standard input: is not UTF-8 text".to_owned(),
        )),
        Err(e) => Err(Failure::Failed(format!(
            "standard input: cannot be read: {e}"
        ))),
    }
}

/// A step that was not done.
struct Failed {
    step: Step,
    /// The kernel's reason; none where another step of its service failed.
    why: Option<ipvs::Error>,
}

/// Makes the steps of both phases: those that take away only of each service for which all the
/// others went well.
async fn apply(
    permitted: &mut write::Permitted<'_>,
    phases: [Vec<Step>; 2],
    done: &mut Tally,
) -> Vec<Failed> {
    let mut failed: Vec<Failed> = Vec::new();
    let mut absent = BTreeSet::new();
    for steps in phases {
        let stopped: BTreeSet<ServiceKey> = failed.iter().map(|f| f.step.service()).collect();
        let (left, steps): (Vec<_>, Vec<_>) = steps
            .into_iter()
            .partition(|s| stopped.contains(&s.service()));
        failed.extend(left.into_iter().map(|step| Failed { step, why: None }));
        let results = permitted.apply(&steps).await;
        for (step, result) in steps.into_iter().zip(results) {
            let Err(e) = result else {
                done.count(&step);
                continue;
            };
            let service = step.service();
            // Without its service no destination can be: one reason says it all.
            let why = (!absent.contains(&service)).then_some(e);
            if matches!(step, Step::NewService(..)) {
                absent.insert(service);
            }
            failed.push(Failed { step, why });
        }
    }
    failed
}

/// What a file asks for, against what is there.
struct Target {
    table: Table,
    /// Thresholds that are cleared because the file is silent, and what stays because no file can
    /// say it.
    warnings: Vec<String>,
    /// Services that the file does not name, and that stay.
    others: usize,
}

impl Target {
    /// What is to be said of the services that stay.
    fn rest(&self) -> String {
        match self.others {
            0 => String::new(),
            n => format!(
                "; {} that the file does not name left as {} (--exact removes {})",
                count(n, "service"),
                if n == 1 { "it is" } else { "they are" },
                if n == 1 { "it" } else { "them" },
            ),
        }
    }
}

struct File<'a> {
    name: &'a Path,
    saved: Saved,
}

impl File<'_> {
    /// `file:line` of what a step is about, or of its service; the file alone if it names neither.
    fn place(&self, step: &Step) -> String {
        let dest = match step {
            Step::NewDest(_, d, _) | Step::SetDest(_, d, _) | Step::DelDest(_, d) => Some(*d),
            Step::NewService(..) | Step::SetService(..) | Step::DelService(_) => None,
        };
        let line = self.saved.line_of(step.service(), dest);
        let line = line.or_else(|| self.saved.line_of(step.service(), None));
        let name = self.name.display();
        line.map_or_else(|| name.to_string(), |line| format!("{name}:{line}"))
    }

    /// The table as the file wants it. A service that is named gets exactly the destinations named.
    fn target(&self, live: &Table, exact: bool, keep_thresholds: bool) -> Target {
        let mut table = self.saved.table.clone();
        let mut warnings = Vec::new();
        for (key, service) in &mut table {
            let Some(there) = live.get(key) else { continue };
            for (dest, attrs) in &mut service.dests {
                let Some(old) = there.dests.get(dest) else {
                    continue;
                };
                if (old.forward, attrs.forward) == (ForwardMethod::Local, ForwardMethod::Dr) {
                    attrs.forward = ForwardMethod::Local;
                    let line = self.saved.line_of(*key, Some(*dest)).unwrap_or(0);
                    warnings.push(format!(
                        "{}:{line}: note: {dest} in {key} stays local, which a file says as -g",
                        self.name.display()
                    ));
                }
                if self.saved.says_thresholds(*key, *dest) || (old.upper, old.lower) == (0, 0) {
                    continue;
                }
                if keep_thresholds {
                    (attrs.upper, attrs.lower) = (old.upper, old.lower);
                    continue;
                }
                let line = self.saved.line_of(*key, Some(*dest)).unwrap_or(0);
                warnings.push(format!(
                    "{}:{line}: warning: {dest} in {key} has thresholds (upper {}, lower {}), of which the file says nothing: they are cleared (--keep-thresholds keeps them)",
                    self.name.display(), old.upper, old.lower
                ));
            }
            for (dest, old) in &there.dests {
                if old.forward == ForwardMethod::Bypass && !service.dests.contains_key(dest) {
                    service.dests.insert(*dest, *old);
                    warnings.push(format!(
                        "{}: note: {dest} in {key} stays: no file can name it, its forwarding method is bypass",
                        self.name.display()
                    ));
                }
            }
        }
        let mut others = 0;
        for (key, service) in live {
            if !exact && !table.contains_key(key) {
                others += 1;
                table.insert(*key, service.clone());
            }
        }
        Target {
            table,
            warnings,
            others,
        }
    }

    fn show(
        &self,
        steps: &[Step],
        live: &Table,
        target: &Target,
        guard: &write::Guard,
    ) -> Result<(), Failure> {
        let mut text = changes::lines(steps, live);
        let Tally {
            added,
            changed,
            removed,
        } = steps.iter().collect();
        match steps.is_empty() {
            true => text.push_str("nothing to change"),
            false => text.push_str(&format!(
                "{added} to add, {changed} to change, {removed} to remove, nothing was done (--diff)"
            )),
        }
        text.push_str(&target.rest());
        text.push('\n');
        if let Some(bar) = guard.foretell(steps) {
            text.push_str(&bar);
            text.push('\n');
        }
        say(&text)
    }

    /// What was not done and why, and what was.
    fn failure(&self, failed: &[Failed], done: Tally) -> String {
        let mut text = String::new();
        let mut by_service: Vec<_> = failed.iter().collect();
        by_service.sort_by_key(|f| f.step.service());
        for Failed { step, why } in by_service {
            if let Some(e) = why {
                text.push_str(&format!("{}: {}\n", self.place(step), Chain(e)));
            }
        }
        let left = failed.iter().filter(|f| f.why.is_none()).count();
        let left = match left {
            0 => String::new(),
            n => format!(" ({n} of them left because of another of the same service)"),
        };
        text.push_str(&format!(
            "{} not made{left}; made: {}",
            count(failed.len(), "change"),
            said(done)
        ));
        text
    }
}

/// What was done before this pass. Of a step that the kernel did not answer nobody knows, so after
/// the first pass it is never nothing.
fn so_far(pass: usize, done: Tally) -> String {
    match pass {
        1 => "nothing was changed".to_owned(),
        _ => format!("made before: {}", said(done)),
    }
}

/// The table could not be read.
fn unread(e: &ipvs::Error, pass: usize, done: Tally) -> Failure {
    Failure::Failed(format!("{}; {}", Chain(e), so_far(pass, done)))
}

fn said(done: Tally) -> String {
    format!(
        "{} added, {} changed, {} removed",
        done.added, done.changed, done.removed
    )
}

#[cfg(test)]
mod tests;
