use std::os::unix::net::UnixListener;

use tokio::task::JoinSet;

use super::*;

fn named(read: &[&str]) -> Operators {
    Operators {
        read: read
            .iter()
            .map(|n| GroupName::Name((*n).to_owned()))
            .collect(),
        change: [GroupName::Id(4711)].into(),
    }
}

/// The example configuration with these operators.
fn config(operators: Option<Operators>) -> Arc<config::Director> {
    let text = "[director]\nname = \"lb1\"\naddress = \"10.77.0.1\"\n";
    let config = config::director::parse(Path::new("d.toml"), text).unwrap();
    Arc::new(config::Director {
        operators,
        ..config
    })
}

fn mode(socket: &Path) -> u32 {
    fs::metadata(socket).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn groups_become_numbers_and_the_socket_opens_and_closes_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("director.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let (operators, rx) = watch::channel(config(None));
    let (tx, mut admission) = watch::channel(Admission::default());
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(run(socket.clone(), rx, tx, stop.clone()));
    let settled = admission.wait_for(|a| a.settled).await.unwrap().clone();
    assert_eq!((settled.access, mode(&socket)), (Access::BySocket, 0o660));

    operators.send_replace(config(Some(named(&["root", "no-such-group-here"]))));
    let by_group = |a: &Admission| matches!(a.access, Access::ByGroup { .. });
    let now = admission.wait_for(by_group).await.unwrap().clone();
    let access = Access::ByGroup {
        read: [0].into(),
        change: [4711].into(),
    };
    assert_eq!((now.access, mode(&socket)), (access, 0o666));
    let [warning] = now.warnings.as_slice() else {
        panic!("{:?}", now.warnings)
    };
    assert!(warning.contains("no-such-group-here"), "{warning}");

    operators.send_replace(config(None));
    let by_socket = |a: &Admission| a.access == Access::BySocket;
    let now = admission.wait_for(by_socket).await.unwrap().clone();
    assert_eq!((now.warnings.len(), mode(&socket)), (0, 0o660));
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_user_without_an_account_is_in_the_group_that_it_came_with() {
    let directory = Directory::default();
    let found = directory.find(3_999_999_999, 77).await.unwrap();
    assert_eq!(*found, [77]);
    let root = directory.find(0, 0).await.unwrap();
    assert!(root.contains(&0));
}
