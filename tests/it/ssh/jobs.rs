use std::{fs, time::Duration};

use tokio::task::JoinSet;
use understudy::{
    model::inventory::Variables,
    provisioner::{
        order::{Class, Hands, Order, Step},
        sealed::{Masks, Sealed, Values},
        ssh::End,
    },
};

use super::lab::{Lab, end, until};

#[tokio::test]
async fn a_script_runs_once_and_its_result_is_taken_again() {
    let lab = Lab::new().await;
    let step = lab.install("r-0", &lab.waiting_script(), 60);
    lab.go();
    let first = lab.perform(1, step.clone()).await.unwrap();
    assert_eq!(first.output, "working\n");
    let again = lab.perform(2, step).await.unwrap();
    assert_eq!((again, lab.starts()), (first, 1));
    assert!(lab.wrappers().is_empty());
    let left = fs::read_dir(lab.path("base/staging")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn twenty_orders_at_once_start_one_script() {
    let lab = Lab::new().await;
    let order = Order {
        server: lab.server(),
        fence: 1,
        step: lab.install("r-0", &lab.waiting_script(), 120),
        masks: Masks::default(),
    };
    let mut all = JoinSet::new();
    for _ in 0..20 {
        let (hands, order) = (lab.hands(), order.clone());
        all.spawn(async move { hands.perform(&order, &drop).await });
    }
    until("the script to start", || lab.starts() > 0).await;
    lab.go();
    let results = all.join_all().await;
    for result in &results {
        assert_eq!(result.as_ref().unwrap().output, "working\n");
    }
    assert_eq!((results.len(), lab.starts()), (20, 1));
    let left = fs::read_dir(lab.path("base/staging")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_job_outlives_the_order_that_started_it() {
    let lab = Lab::new().await;
    let step = lab.install("r-0", &lab.waiting_script(), 60);
    tokio::select! {
        result = lab.perform(1, step.clone()) => panic!("{result:?}"),
        () = until("the script to start", || lab.starts() > 0) => {}
    }
    lab.cut();
    assert_eq!(lab.wrappers().len(), 1);
    let (done, ()) = tokio::join!(lab.perform(2, step), async {
        until("the job to be followed", || {
            lab.log().matches("Accepted").count() > 1
        })
        .await;
        lab.go();
    });
    assert_eq!(
        (done.unwrap().output.as_str(), lab.starts()),
        ("working\n", 1)
    );
}

#[tokio::test]
async fn a_link_that_is_cut_while_following_is_made_again() {
    let lab = Lab::new().await;
    let step = lab.install("r-0", &lab.waiting_script(), 60);
    let (done, ()) = tokio::join!(lab.perform(1, step), async {
        until("the script to start", || lab.starts() > 0).await;
        for connections in [2, 3] {
            lab.cut();
            let accepted = || lab.log().matches("Accepted").count();
            until("the link to be made again", || accepted() >= connections).await;
        }
        lab.go();
    });
    assert_eq!(
        (done.unwrap().output.as_str(), lab.starts()),
        ("working\n", 1)
    );
}

#[tokio::test]
async fn a_killed_wrapper_is_a_lost_job() {
    let lab = Lab::new().await;
    let step = lab.install("r-0", &lab.waiting_script(), 60);
    let (e, ()) = tokio::join!(lab.perform(1, step.clone()), async {
        until("the script to start", || lab.starts() > 0).await;
        lab.wrappers().into_iter().for_each(end);
    });
    let e = e.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "job_lost"), "{e}");
    let e = lab.perform(2, step).await.unwrap_err();
    assert_eq!((e.code, lab.starts()), ("job_lost", 1));
}

#[tokio::test]
async fn a_job_claimed_but_never_started_is_not_started() {
    // A power cut between claim.sh's rename and the wrapper.
    let lab = Lab::new().await;
    let dir = lab.path("base/jobs/r-0");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("lock"), "").unwrap();
    let step = lab.install("r-0", &lab.waiting_script(), 60);
    let e = lab.perform(1, step).await.unwrap_err();
    assert_eq!((e.code, lab.starts()), ("job_lost", 0));
}

#[tokio::test]
async fn the_time_limit_leaves_nothing_running() {
    let lab = Lab::new().await;
    let script = "trap '' TERM\n\
        setsid sh -c 'while :; do sleep 1; done' &\n\
        (trap '' TERM; sleep 300) &\n\
        echo waiting\n\
        while :; do sleep 1; done\n";
    let step = lab.install("r-0", script, 1);
    let (e, ()) = tokio::join!(lab.perform(1, step.clone()), async {
        until("the script to run", || lab.of_jobs().len() >= 3).await;
    });
    let e = e.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "script_timed_out"));
    assert_eq!(e.output, "waiting\n");
    assert_eq!(lab.of_jobs(), [0; 0], "processes left");
    assert!(lab.wrappers().is_empty());
    let again = lab.perform(1, step).await.unwrap_err();
    assert_eq!(again, e);
}

#[tokio::test]
async fn a_leader_that_obeys_does_not_hide_a_child_that_does_not() {
    let lab = Lab::new().await;
    let script = "(trap '' TERM; while :; do sleep 1; done) &\nsleep 300\n";
    let e = lab.perform(1, lab.install("r-0", script, 1)).await;
    assert_eq!(e.unwrap_err().code, "script_timed_out");
    assert_eq!(lab.of_jobs(), [0; 0], "processes left");
}

#[tokio::test]
async fn a_daemon_that_stays_does_not_hold_the_job() {
    let lab = Lab::new().await;
    let script = "sleep 300 &\nsetsid sleep 300 &\necho up\n";
    let done = lab.perform(1, lab.install("r-0", script, 60)).await;
    assert_eq!(done.unwrap().output, "up\n");
    assert_eq!(lab.of_jobs().len(), 2);
}

#[tokio::test]
async fn failures_say_the_status_and_the_last_lines() {
    let lab = Lab::new().await;
    let script = "echo one\necho 'E: Unable to locate package nginx' >&2\nexit 100\n";
    let e = lab
        .perform(1, lab.install("r-0", script, 9))
        .await
        .unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "script_failed"));
    assert_eq!(
        e.detail,
        "the script of thing ended on spare1 with status 100: \
         one | E: Unable to locate package nginx"
    );
    let script = "kill -SEGV $$";
    let e = lab
        .perform(1, lab.install("r-1", script, 9))
        .await
        .unwrap_err();
    assert!(e.detail.contains("status 139 (signal 11)"), "{e}");
    // Its own 124 is not our time limit.
    let e = lab.perform(1, lab.install("r-2", "exit 124", 9)).await;
    assert_eq!(e.unwrap_err().code, "script_failed");
}

#[tokio::test]
async fn variables_arrive_as_they_are_and_stdin_is_empty() {
    let lab = Lab::new().await;
    let value = "it's \"quoted\" $HOME `id` $(id) \\ * \n second; line";
    let mut step = lab.install(
        "r-0",
        "cat\nprintf %s \"$VALUE\" >\"$OUT\"\nenv | grep -c SSH_\numask\n",
        60,
    );
    let Step::Install { variables, .. } = &mut step else {
        unreachable!()
    };
    *variables = Variables::from([
        ("VALUE".into(), value.into()),
        ("OUT".into(), lab.text("out")),
        ("status".into(), "9".into()),
        ("dir".into(), "/nowhere".into()),
    ]);
    // grep -c of nothing ends with 1, which is not the script's last command.
    let done = lab.perform(1, step).await.unwrap();
    assert_eq!(done.output, "0\n0022\n");
    assert_eq!(fs::read_to_string(lab.path("out")).unwrap(), value);
    use std::os::unix::fs::PermissionsExt;
    let mode = |name: &str| fs::metadata(lab.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("base/jobs/r-0"), mode("base/jobs/r-0/script")),
        (0o700, 0o600)
    );
}

#[tokio::test]
async fn much_output_is_kept_in_part() {
    let lab = Lab::new().await;
    let script = "echo first\nhead -c 8388608 /dev/zero | tr '\\0' x\necho last\n";
    let done = lab
        .perform(1, lab.install("r-0", script, 60))
        .await
        .unwrap();
    let kept = 2 * 128 * 1024;
    assert!((kept..kept + 100).contains(&done.output.len()));
    assert!(done.output.starts_with("first\nx") && done.output.ends_with("xlast\n"));
    let lost = 6 + 8_388_608 + 5 - kept;
    let line = format!("x\n[... {lost} bytes left out ...]\nx");
    assert!(done.output.contains(&line));
}

/// What the folder takes on the disk, in bytes.
fn size(lab: &Lab, folder: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = fs::read_dir(lab.path(folder)).unwrap();
    // One may be renamed meanwhile.
    files
        .filter_map(|f| f.ok()?.metadata().ok())
        .map(|m| m.blocks() * 512)
        .sum()
}

#[tokio::test]
async fn a_script_that_writes_without_end_is_ended_by_its_limit_alone() {
    let lab = Lab::new().await;
    let script = "echo begin\nyes 'all work and no play'\n";
    let work = lab.perform(1, lab.install("r-0", script, 4));
    tokio::pin!(work);
    let mut largest = 0;
    let e = loop {
        tokio::select! {
            e = &mut work => break e.unwrap_err(),
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                if lab.path("base/jobs/r-0").exists() {
                    largest = largest.max(size(&lab, "base/jobs/r-0"));
                }
            }
        }
    };
    assert_eq!(e.code, "script_timed_out", "{}", e.detail);
    assert!((300_000..1 << 20).contains(&largest), "{largest} bytes");
    assert!(size(&lab, "base/jobs/r-0") < 1 << 20);
    assert!(e.output.starts_with("begin\nall work") && e.output.len() < 280_000);
    assert_eq!(lab.of_jobs(), [0; 0]);
}

#[tokio::test]
async fn what_a_script_prints_is_told_while_it_runs() {
    let lab = Lab::new().await;
    let (server, step) = (lab.server(), lab.install("r-0", &lab.waiting_script(), 60));
    let order = Order {
        server,
        fence: 1,
        step,
        masks: Masks::default(),
    };
    let heard = std::sync::Mutex::new(Vec::new());
    let hear = |text| {
        heard.lock().unwrap().push(text);
        // It ends only when it was heard.
        lab.go();
    };
    let done = lab.hands().perform(&order, &hear).await.unwrap();
    assert_eq!(done.output, "working\n");
    assert_eq!(heard.into_inner().unwrap(), ["working\n"]);
}

#[tokio::test]
async fn a_secret_is_in_the_environment_and_nowhere_else() {
    let lab = Lab::new().await;
    let script = format!(
        "printf %s \"$DB_PASSWORD\" >{}/got\necho it is $DB_PASSWORD\necho $DB_PASSWORD >&2\nexit 3\n",
        lab.dir.path().display()
    );
    let mut step = lab.install("r-0", &script, 60);
    let Step::Install { secrets, .. } = &mut step else {
        unreachable!()
    };
    *secrets = vec![Sealed::named("DB_PASSWORD")];
    let values = Values::from([("DB_PASSWORD".into(), "open'sesame".into())]);
    let order = Order {
        server: lab.server(),
        fence: 1,
        step: step.reveal(&values),
        masks: Masks::of(&values),
    };
    let e = lab.hands().perform(&order, &drop).await.unwrap_err();
    assert_eq!(e.output, "it is ********\n********\n");
    assert!(!e.detail.contains("sesame"), "{e}");
    assert_eq!(fs::read_to_string(lab.path("got")).unwrap(), "open'sesame");
    assert!(!lab.path("base/jobs/r-0/env").exists());
    assert!(!lab.log().contains("sesame"), "sshd's log has the commands");
}

#[tokio::test]
async fn a_secret_may_be_a_word_of_ours() {
    let lab = Lab::new().await;
    let words = ["started", "claimed", "ended", "exited", "running", "absent"];
    let values: Values = words.map(|word| (word.to_owned(), word.to_owned())).into();
    let order = Order {
        server: lab.server(),
        fence: 1,
        step: lab.install("r-0", "echo it is started\n", 60),
        masks: Masks::of(&values),
    };
    for _ in 0..2 {
        let done = lab.hands().perform(&order, &drop).await.unwrap();
        assert_eq!(done.output, "it is ********\n");
    }
    let heard = std::sync::Mutex::new(String::new());
    let order = Order {
        step: lab.install(
            "r-1",
            &format!("echo started\n{}", lab.waiting_script()),
            60,
        ),
        ..order
    };
    let hear = |text: String| {
        *heard.lock().unwrap() = text;
        lab.go();
    };
    lab.hands().perform(&order, &hear).await.unwrap();
    assert!(heard.into_inner().unwrap().starts_with("********\n"));
}

#[tokio::test]
async fn a_script_that_installed_nothing_is_found_out() {
    let lab = Lab::new().await;
    let mut step = lab.install("r-0", "echo fine\n", 60);
    let Step::Install { check, .. } = &mut step else {
        unreachable!()
    };
    *check = Some("echo not there; exit 3".into());
    let e = lab.perform(1, step.clone()).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "not_installed"));
    assert!(
        e.detail.contains("status 3") && e.detail.contains("not there"),
        "{e}"
    );
    let Step::Install { check, .. } = &mut step else {
        unreachable!()
    };
    *check = Some("true".into());
    assert!(lab.perform(1, step).await.is_ok());
}

#[tokio::test]
async fn a_lower_fence_does_nothing() {
    let lab = Lab::new().await;
    lab.perform(3, Step::Fence).await.unwrap();
    lab.perform(7, Step::Fence).await.unwrap();
    let fence = || fs::read_to_string(lab.path("base/fence")).unwrap();
    assert_eq!(fence(), "7\n");
    let place = Step::Configure {
        software: "thing".into(),
        files: vec![super::files::file(&lab, "placed", "x")],
        running: None,
        start: Some(format!("echo >{}", lab.text("ran"))),
        reload: None,
    };
    for step in [Step::Fence, lab.install("r-0", "true", 9), place] {
        let e = lab.perform(6, step).await.unwrap_err();
        assert_eq!((e.class, e.code), (Class::Fenced, "fenced"));
        assert!(e.detail.contains("its fence is 7, this order's 6"), "{e}");
    }
    assert!(!lab.path("placed").exists() && !lab.path("ran").exists());
    assert!(!lab.path("base/jobs/r-0").exists());
    assert_eq!(super::files::hidden(&lab, ""), [""; 0]);
    assert_eq!(fence(), "7\n");
    lab.perform(7, Step::Fence).await.unwrap();
    fs::write(lab.path("base/fence"), "garbage").unwrap();
    let e = lab.perform(8, Step::Fence).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "fence_unreadable"));
}

#[tokio::test]
async fn a_rename_never_replaces_a_job() {
    // What claim.sh rests on besides the fence's lock.
    let lab = Lab::new().await;
    let ssh = lab.connect().await;
    let d = lab.dir.path().display();
    let command = format!("cd {d} && mkdir a b && echo >a/x && echo >b/y && mv -T a b");
    let ran = ssh.exec(&command, Duration::from_secs(20)).await.unwrap();
    assert_eq!(ran.end, End::Exit(1));
    assert!(lab.path("b/y").exists() && !lab.path("b/x").exists());
}
