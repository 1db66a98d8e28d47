//! What was measured, for people and as JSON.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use crate::{run::Taken, table};

/// The first side's median against another's.
pub(crate) struct Goal {
    /// Which side.
    other: usize,
    at_most: f64,
}

impl Goal {
    pub(crate) fn first_against(other: usize, at_most: f64) -> Self {
        Self { other, at_most }
    }
}

/// The most memory that a process had.
pub(crate) struct Peak {
    pub(crate) name: &'static str,
    pub(crate) kilobytes: u64,
}

/// What a measure found.
pub(crate) enum Outcome {
    Times {
        measure: &'static str,
        of: &'static str,
        taken: Vec<Taken>,
        goals: Vec<Goal>,
    },
    Memory {
        measure: &'static str,
        of: &'static str,
        peaks: Vec<Peak>,
        below_kilobytes: u64,
    },
    /// It could not be measured.
    Failed { measure: String, why: String },
}

impl Outcome {
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }

    pub(crate) fn json(&self) -> Value {
        match self {
            Self::Times {
                measure,
                of,
                taken,
                goals,
            } => json!({
                "measure": measure,
                "of": of,
                "sides": taken.iter().map(side).collect::<Vec<_>>(),
                "goals": goals.iter().map(|g| goal(taken, g)).collect::<Vec<_>>(),
            }),
            Self::Memory {
                measure,
                of,
                peaks,
                below_kilobytes,
            } => json!({
                "measure": measure,
                "of": of,
                "peaks": peaks.iter().map(|p| json!({
                    "name": p.name,
                    "kilobytes": p.kilobytes,
                    "below": below_kilobytes,
                    "holds": p.kilobytes < *below_kilobytes,
                })).collect::<Vec<_>>(),
            }),
            Self::Failed { measure, why } => json!({ "measure": measure, "failed": why }),
        }
    }
}

fn side(taken: &Taken) -> Value {
    let runs: Vec<f64> = taken.runs.iter().copied().map(milliseconds).collect();
    json!({ "name": taken.name, "median_ms": middle(&taken.runs), "runs_ms": runs })
}

fn goal(taken: &[Taken], goal: &Goal) -> Value {
    let ratio = ratio(taken, goal);
    json!({
        "of": taken.first().map(|t| t.name),
        "against": taken.get(goal.other).map(|t| t.name),
        "ratio": ratio,
        "at_most": goal.at_most,
        "holds": ratio <= goal.at_most,
    })
}

fn ratio(taken: &[Taken], goal: &Goal) -> f64 {
    let median = |n: usize| taken.get(n).map_or(f64::NAN, |t| middle(&t.runs));
    median(0) / median(goal.other)
}

fn milliseconds(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// The median, in milliseconds.
fn middle(runs: &[Duration]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort();
    let at = |n: usize| sorted.get(n).copied().map_or(f64::NAN, milliseconds);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        at(half)
    } else {
        f64::midpoint(at(half.saturating_sub(1)), at(half))
    }
}

fn verdict(holds: bool) -> &'static str {
    if holds { "holds" } else { "MISSED" }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Times {
                measure,
                of,
                taken,
                goals,
            } => {
                writeln!(
                    f,
                    "{:<48}{:>9}{:>9}{:>9}  ms",
                    format!("{measure}: {of}"),
                    "min",
                    "median",
                    "max"
                )?;
                for t in taken {
                    let ends = [t.runs.iter().min(), t.runs.iter().max()];
                    let [min, max] = ends.map(|d| d.map_or(f64::NAN, |d| milliseconds(*d)));
                    let median = middle(&t.runs);
                    writeln!(f, "  {:<46}{min:>9.1}{median:>9.1}{max:>9.1}", t.name)?;
                }
                for g in goals {
                    let against = taken.get(g.other).map_or("", |t| t.name);
                    let ratio = ratio(taken, g);
                    let says = verdict(ratio <= g.at_most);
                    writeln!(
                        f,
                        "  = {ratio:.2} of {against}; goal at most {:.2}: {says}",
                        g.at_most
                    )?;
                }
                Ok(())
            }
            Self::Memory {
                measure,
                of,
                peaks,
                below_kilobytes,
            } => {
                writeln!(f, "{:<75}  MB", format!("{measure}: {of}"))?;
                for p in peaks {
                    let says = verdict(p.kilobytes < *below_kilobytes);
                    writeln!(f, "  {:<64}{:>9}", p.name, megabytes(p.kilobytes))?;
                    let goal = megabytes(*below_kilobytes);
                    writeln!(f, "  = goal below {goal}: {says}")?;
                }
                Ok(())
            }
            Self::Failed { measure, why } => {
                writeln!(f, "{measure}: could not be measured: {why}")
            }
        }
    }
}

fn megabytes(kilobytes: u64) -> String {
    format!("{}.{}", kilobytes / 1000, kilobytes % 1000 / 100)
}

/// The head of the report.
pub(crate) fn head(kernel: &str, rounds: usize) -> (String, Value) {
    let (services, dests) = (table::SERVICES, table::DESTS);
    let text = format!(
        "{services} services of {dests} destinations each, {rounds} rounds, Linux {kernel}\n"
    );
    let value = json!({
        "kernel": kernel,
        "services": services,
        "destinations_each": dests,
        "rounds": rounds,
    });
    (text, value)
}
