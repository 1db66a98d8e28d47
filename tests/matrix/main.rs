//! `make kills`: the provisioner killed right before, in and right after each journal write, so right before and right
//! after each step; and at packets of SSH sessions, answers of the API, what it sends to PostgreSQL. The same with the
//! database crashed instead. Then whoever asked goes on asking, and in the end there is one spare in service, none
//! leaked, and no script ran twice. `make test` takes a seeded sample.
//!
//! This program is both: who watches, and, started by itself with other arguments, the product's provisioner.
//!
//! `MATRIX` says how many cases there are (all), `MATRIX_SEED` which ones, words after `--` what their names must have in
//! them: `cargo test --test matrix -- plain journal`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::as_conversions,
    reason = "a program for people: it prints, and fails loudly where it stands"
)]

#[expect(dead_code, reason = "a director's calls are the kernel suite's")]
mod calls;
mod case;
#[expect(dead_code, reason = "the library's tests use all of it")]
#[path = "../../src/provisioner/testing/home.rs"]
mod home;
mod lab;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use tokio::{runtime::Builder, task::JoinSet};
use understudy::provisioner;

use calls::{Class, Point, What, When};
use case::{Sides, Story};
use lab::Lab;

/// A case waits most of its time: more of them than there are processors.
const AT_ONCE: u8 = 4;

/// Packets and questions of which so many are taken of each kind: there are hundreds, and what is on the disk changes
/// between few of them.
const TAKEN: usize = 24;

/// Which story, on which engine, with what happening where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    postgres: bool,
    story: Story,
    point: Point,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = if self.postgres {
            "PostgreSQL"
        } else {
            "SQLite"
        };
        let what = match self.point.what {
            What::Die => "killed",
            What::Hold => "database crashed",
        };
        let (story, when) = (self.story.word(), self.point.when.word());
        let (class, number) = (self.point.class.word(), self.point.number);
        write!(f, "{engine} {story}: {what} {when} {class} {number}")
    }
}

fn main() -> ExitCode {
    if calls::arm() {
        return understudy::cli::main();
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build();
    match runtime.unwrap().block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("matrix: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every point of a class that counts in full, on each side.
fn all(class: Class, made: u64, sides: &[When], what: What) -> Vec<Point> {
    let points = (1..=made).flat_map(|number| {
        sides.iter().map(move |when| Point {
            class,
            number,
            when: *when,
            what,
        })
    });
    points.collect()
}

struct Dice(u64);

impl Dice {
    /// xorshift64*: the same numbers wherever it runs.
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(drawn).unwrap() % n.max(1)
    }

    fn some<T>(&mut self, mut of: Vec<T>, n: usize) -> Vec<T> {
        while of.len() > n {
            of.swap_remove(self.below(of.len()));
        }
        of
    }
}

/// So many of them, of each kind as many as of any other.
fn of_each(dice: &mut Dice, cases: Vec<Name>, n: usize) -> Vec<Name> {
    let mut kinds: BTreeMap<_, Vec<Name>> = BTreeMap::new();
    for name in cases {
        let kind = (name.postgres, name.story, name.point.class, name.point.what);
        kinds.entry(kind).or_default().push(name);
    }
    let mut taken = Vec::new();
    while taken.len() < n && kinds.values().any(|of| !of.is_empty()) {
        for of in kinds.values_mut().filter(|of| !of.is_empty()) {
            if taken.len() < n {
                taken.push(of.swap_remove(dice.below(of.len())));
            }
        }
    }
    taken
}

fn number(name: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => Ok(Some(text.parse().with_context(|| name.to_owned())?)),
        _ => Ok(None),
    }
}

async fn run() -> anyhow::Result<()> {
    let begun = Instant::now();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().filter(|w| !w.starts_with('-')).collect();
    let sample = number("MATRIX")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = number("MATRIX_SEED")?.unwrap_or(now.as_millis() as u64);
    let mut dice = Dice(seed | 1);

    let cases = cases(&mut dice, sample.is_some()).await?;
    let mut cases: Vec<_> = cases
        .into_iter()
        .filter(|c| words.iter().all(|w| c.to_string().contains(w.as_str())))
        .collect();
    if let Some(n) = sample {
        cases = of_each(&mut dice, cases, usize::try_from(n)?);
    }
    // All of those by which a step's two sides are told.
    let sided = ["SQLite", "plain", "killed", "journal"];
    let full = sample.is_none() && words.iter().all(|w| sided.contains(&w.as_str()));
    println!("matrix: {} cases, seed {seed}", cases.len());
    let results = play_all(cases).await?;

    let mut failed = 0;
    let mut missed = 0;
    let mut sides = Sides::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (name, result) in &results {
        match result {
            Ok(outcome) if outcome.reached => {
                let (point, engine) = (
                    name.point,
                    if name.postgres {
                        "PostgreSQL"
                    } else {
                        "SQLite"
                    },
                );
                let what = match point.what {
                    What::Die => "killed",
                    What::Hold => "database crashed",
                };
                let kind = format!(
                    "{engine} {}: {what} at a {}",
                    name.story.word(),
                    point.class.word()
                );
                *counts.entry(kind).or_default() += 1;
                if (name.story, point.class) == (Story::Plain, Class::Journal) {
                    outcome.side(point.when, &mut sides);
                }
            }
            Ok(_) => {
                println!("matrix: not reached: {name}");
                missed += 1;
            }
            Err(_) => failed += 1,
        }
    }
    for (kind, n) in &counts {
        println!("matrix: {n:4} {kind}");
    }
    let took = begun.elapsed().as_secs();
    println!(
        "matrix: {} cases, {failed} failed, {missed} not reached, {took} s, seed {seed}",
        results.len()
    );
    ensure!(failed == 0, "{failed} cases failed");
    ensure!(
        missed * 10 <= results.len(),
        "too many points were not reached"
    );
    if full {
        ensure!(sides.len() == 7, "{sides:?}");
        let one_sided: Vec<_> = sides.iter().filter(|(_, s)| **s != [true, true]).collect();
        ensure!(
            one_sided.is_empty(),
            "not killed right before and right after (ordered, ended): {one_sided:?}"
        );
        println!("matrix: killed right before and right after each step of a replacement");
    }
    Ok(())
}

const SIDES: [When; 2] = [When::Before, When::After];
const PARTS: [When; 3] = [When::Before, When::Torn, When::After];

/// A run of each story without a kill says how many points it has. Those of a sample are the quick ones.
async fn count(sample: bool) -> anyhow::Result<BTreeMap<(bool, Story), BTreeMap<Class, u64>>> {
    let mut stories = vec![
        (false, Story::Plain),
        (false, Story::Broken),
        (false, Story::Cancelled),
        (false, Story::Fresh),
        (true, Story::Plain),
    ];
    if !sample {
        stories.push((false, Story::Warm));
    }
    let mut counting = JoinSet::new();
    for (number, (postgres, story)) in (1..).zip(stories) {
        counting.spawn(async move {
            let mut lab = Lab::new(number, story == Story::Warm, postgres).await?;
            let played = case::play(&mut lab, story, None).await;
            let played = played.with_context(|| format!("{} without a kill", story.word()))?;
            anyhow::Ok(((postgres, story), played.made))
        });
    }
    let mut counts = BTreeMap::new();
    while let Some(counted) = counting.join_next().await {
        let (of, made) = counted??;
        counts.insert(of, made);
    }
    Ok(counts)
}

/// All cases that there are.
async fn cases(dice: &mut Dice, sample: bool) -> anyhow::Result<Vec<Name>> {
    let mut cases = Vec::new();
    for ((postgres, story), made) in count(sample).await? {
        let of = |class| made.get(&class).copied().unwrap_or_default();
        let some =
            |dice: &mut Dice, class, what, n| dice.some(all(class, of(class), &SIDES, what), n);
        let mut points = Vec::new();
        // That there are so many says too that the functions of the C library are those of `calls`.
        let (class, least) = match (postgres, story) {
            (true, _) => (Class::Commit, 20),
            (false, Story::Fresh) => (Class::Journal, 3),
            (false, _) => (Class::Journal, 20),
        };
        ensure!(
            of(class) > least,
            "{} {class:?} in {}",
            of(class),
            story.word()
        );
        if postgres {
            for what in [What::Die, What::Hold] {
                points.extend(all(Class::Commit, of(Class::Commit), &SIDES, what));
                points.extend(some(dice, Class::Query, what, TAKEN));
            }
        } else {
            // What is torn is the same whatever the story.
            let parts: &[When] = match story {
                Story::Plain | Story::Fresh => &PARTS,
                Story::Broken | Story::Cancelled | Story::Warm => &SIDES,
            };
            points.extend(all(Class::Journal, of(Class::Journal), parts, What::Die));
        }
        if (postgres, story) == (false, Story::Plain) {
            ensure!(of(Class::Ssh) > 100, "{made:?}");
            points.extend(some(dice, Class::Ssh, What::Die, 2 * TAKEN));
            points.extend(some(dice, Class::Answer, What::Die, TAKEN));
        }
        cases.extend(points.into_iter().map(|point| Name {
            postgres,
            story,
            point,
        }));
    }
    Ok(cases)
}

type Results = Vec<(Name, anyhow::Result<case::Outcome>)>;

async fn play_all(cases: Vec<Name>) -> anyhow::Result<Results> {
    let mut results = Results::new();
    for postgres in [false, true] {
        let of: VecDeque<_> = cases
            .iter()
            .copied()
            .filter(|c| c.postgres == postgres)
            .collect();
        let at_once = AT_ONCE.min(u8::try_from(of.len()).unwrap_or(AT_ONCE));
        let queue = Arc::new(Mutex::new(of));
        let mut workers = JoinSet::new();
        for number in 1..=at_once {
            let queue = Arc::clone(&queue);
            workers.spawn(async move { work(number, postgres, &queue).await });
        }
        while let Some(done) = workers.join_next().await {
            results.extend(done??);
        }
    }
    results.sort_by_key(|(name, _)| *name);
    Ok(results)
}

async fn work(
    number: u8,
    postgres: bool,
    queue: &Mutex<VecDeque<Name>>,
) -> anyhow::Result<Results> {
    let mut lab = Lab::new(number, !postgres, postgres).await?;
    let mut results = Results::new();
    loop {
        let Some(name) = queue.lock().unwrap().pop_front() else {
            return Ok(results);
        };
        let begun = Instant::now();
        let result = case::play(&mut lab, name.story, Some(name.point)).await;
        let took = begun.elapsed();
        match &result {
            Err(e) => println!("matrix: FAILED: {name}: {e:#}"),
            Ok(_) if took > Duration::from_secs(30) => {
                println!("matrix: {name}: {} s", took.as_secs());
            }
            Ok(_) => {}
        }
        results.push((name, result));
    }
}
