use std::{collections::BTreeMap, path::PathBuf};

use hyper::Method;
use tokio::task::JoinSet;

use super::*;
use crate::{
    api::client::{Client, NOTHING},
    model::{Access, Right},
};

/// Everybody but root and its own user is in these groups.
#[derive(Debug)]
struct Everybody(Result<Vec<u32>, String>);

impl Directory for Everybody {
    fn groups(&self, _uid: u32, _gid: u32) -> Found<'_, Arc<[u32]>> {
        Box::pin(async { self.0.clone().map(Into::into) })
    }
}

#[derive(Debug)]
struct Nothing;

impl Kernel for Nothing {
    fn count(&self, services: Vec<ServiceKey>) -> Found<'_, Counted> {
        Box::pin(async move { Ok(services.into_iter().map(|s| (s, BTreeMap::new())).collect()) })
    }
}

/// A desk with these rights, for callers who are in these groups.
fn desk(access: Access, groups: Result<Vec<u32>, String>) -> (Desk, mpsc::Receiver<Question>) {
    let (questions, asked) = mpsc::channel(4);
    let admission = Admission {
        access,
        warnings: vec!["the group x is not there".to_owned()],
        settled: true,
    };
    let desk = Desk {
        questions,
        readings: mpsc::channel(1).0,
        ring: watch::channel(EventRing::new(
            crate::model::Role::Director,
            None,
            crate::model::WallMillis(1),
        ))
        .1,
        admission: watch::channel(admission).1,
        directory: Arc::new(Everybody(groups)),
        kernel: Arc::new(Nothing),
        provisioner: None,
    };
    (desk, asked)
}

async fn status_of(desk: &Desk, uid: u32, right: Right) -> u16 {
    let caller = Caller::Local { uid, gid: 1000 };
    let checked = admit::check(desk, caller, right, 7).await;
    checked.map_or_else(|refused| refused.status().as_u16(), |()| 200)
}

fn by_group() -> Access {
    Access::ByGroup {
        read: [40].into(),
        change: [50].into(),
    }
}

#[tokio::test]
async fn supplementary_groups_let_in_and_who_is_in_none_is_told_so() {
    let groups = |more: &[u32]| Ok([&[1000], more].concat());
    for (access, groups, reads, changes) in [
        (by_group(), groups(&[40]), 200, 403),
        (by_group(), groups(&[50]), 200, 200),
        (by_group(), groups(&[]), 403, 403),
        (Access::BySocket, groups(&[40]), 200, 403),
        // Nobody knows: that is no 'no'.
        (by_group(), Err("no answer".to_owned()), 503, 503),
    ] {
        let (desk, _asked) = desk(access.clone(), groups.clone());
        let found = (
            status_of(&desk, 1000, Right::Read).await,
            status_of(&desk, 1000, Right::Change).await,
        );
        assert_eq!(found, (reads, changes), "{access:?} {groups:?}");
        for uid in [0, 7] {
            assert_eq!(status_of(&desk, uid, Right::Change).await, 200);
        }
    }
}

#[tokio::test]
async fn nobody_but_root_gets_in_before_the_groups_are_known() {
    let (mut desk, _asked) = desk(by_group(), Ok(vec![50]));
    let (_kept, unsettled) = watch::channel(Admission::default());
    desk.admission = unsettled;
    time::pause();
    assert_eq!(status_of(&desk, 1000, Right::Read).await, 503);
    assert_eq!(status_of(&desk, 0, Right::Change).await, 200);
}

#[tokio::test]
async fn each_route_answers_at_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("d.sock");
    let doors = Doors::open(Some(&path), None).await.unwrap();
    let (desk, mut asked) = desk(by_group(), Ok(vec![]));
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(doors, desk, stop.clone()));
    tasks.spawn(async move {
        while let Some(question) = asked.recv().await {
            match question {
                Question::Explain(explain) => {
                    assert_eq!(explain.port, Some(80));
                    explain.answer.send(vec![]).unwrap();
                }
                Question::Status(answer) => drop(answer),
                Question::Order(_) => panic!("nobody ordered"),
            }
        }
    });
    let client = Client::unix(path);
    let limit = Duration::from_secs(20);
    for (path, code) in [
        ("/v1/explain?server=10.0.0.1:80", "no_such_server"),
        ("/v1/explain?server=web1", "bad_question"),
        ("/v1/explain", "bad_question"),
        ("/v1/explain?server=10.0.0.1&service=tcp", "bad_question"),
        ("/v1/status", "core_silent"),
        ("/v1/nothing", "no_such_route"),
    ] {
        let answer = client.ask::<()>(Method::GET, path, None, NOTHING, limit);
        let error = answer.await.unwrap_err();
        assert_eq!(error.problem().unwrap().code, code, "{path}: {error}");
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}
