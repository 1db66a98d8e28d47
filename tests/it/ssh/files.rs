use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::Duration,
};

use sha2::{Digest, Sha256};
use understudy::{
    model::CheckKind,
    provisioner::{
        order::{Class, RenderedFile, ServiceTest, Step},
        sealed::{Masks, Sealed, Values},
        step::{Look, Wanted},
    },
};

use super::lab::{Lab, system};

pub(crate) fn digest(body: &str) -> String {
    let bytes = Sha256::digest(body);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn file(lab: &Lab, name: &str, body: &str) -> RenderedFile {
    RenderedFile {
        path: lab.text(name),
        body: body.into(),
        sha256: digest(body),
        mode: 0o640,
        owner: "nobody".into(),
        group: "nogroup".into(),
        validate: None,
        secrets: Vec::new(),
    }
}

/// Hidden files in a folder of the lab: uploads that were left.
pub(crate) fn hidden(lab: &Lab, folder: &str) -> Vec<String> {
    fs::read_dir(lab.path(folder))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with('.'))
        .collect()
}

fn place(files: Vec<RenderedFile>) -> Step {
    Step::Configure {
        software: "thing".into(),
        files,
        running: None,
        start: None,
        reload: None,
    }
}

#[tokio::test]
async fn files_are_placed_whole_and_left_alone_when_equal() {
    let lab = Lab::new().await;
    fs::write(lab.path("conf"), "old").unwrap();
    let wanted = file(&lab, "conf", "new it's $x\n");
    let link = file(&lab, "link", "no link\n");
    std::os::unix::fs::symlink(lab.path("authorized_keys"), lab.path("link")).unwrap();
    let deep = file(&lab, "a folder/b/c", "");
    let step = place(vec![wanted, link, deep]);
    fs::write(lab.path(".conf.understudy.0123"), "left by a dead one").unwrap();
    let done = lab.perform(1, step.clone()).await.unwrap();
    assert!(done.detail.contains("3 files placed"), "{done:?}");
    let meta = fs::symlink_metadata(lab.path("conf")).unwrap();
    assert_eq!(
        fs::read_to_string(lab.path("conf")).unwrap(),
        "new it's $x\n"
    );
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o640, 65534, 65534)
    );
    assert!(fs::symlink_metadata(lab.path("link")).unwrap().is_file());
    assert!(
        fs::read_to_string(lab.path("authorized_keys"))
            .unwrap()
            .starts_with("ssh-")
    );
    let folder = fs::metadata(lab.path("a folder/b")).unwrap();
    assert_eq!(folder.mode() & 0o7777, 0o755);
    assert_eq!(hidden(&lab, ""), [""; 0]);
    let again = lab.perform(1, step.clone()).await.unwrap();
    assert!(again.detail.contains("no file differed"), "{again:?}");
    assert_eq!(fs::metadata(lab.path("conf")).unwrap().ino(), meta.ino());
    // Only the mode differs: placed again.
    fs::set_permissions(lab.path("conf"), fs::Permissions::from_mode(0o600)).unwrap();
    let again = lab.perform(1, step).await.unwrap();
    assert!(again.detail.contains("conf placed"), "{again:?}");
}

#[tokio::test]
async fn a_mode_with_setuid_survives_the_owner() {
    let lab = Lab::new().await;
    let mut tool = file(&lab, "tool", "x");
    tool.mode = 0o4755;
    let step = place(vec![tool]);
    lab.perform(1, step.clone()).await.unwrap();
    assert_eq!(
        fs::metadata(lab.path("tool")).unwrap().mode() & 0o7777,
        0o4755
    );
    let again = lab.perform(1, step).await.unwrap();
    assert!(again.detail.contains("no file differed"), "{again:?}");
}

#[tokio::test]
async fn where_one_file_cannot_be_placed_none_is() {
    let lab = Lab::new().await;
    fs::write(lab.path("good"), "old").unwrap();
    fs::create_dir(lab.path("dir")).unwrap();
    let good = file(&lab, "good", "new");
    let mut owner = file(&lab, "owner", "x");
    owner.owner = "nosuchuser".into();
    let folder = file(&lab, "dir", "x");
    for (bad, said) in [(owner, "invalid user"), (folder, "is a directory")] {
        let e = lab.perform(1, place(vec![good.clone(), bad])).await;
        let e = e.unwrap_err();
        assert_eq!((e.class, e.code), (Class::Permanent, "place_failed"));
        assert!(e.detail.contains(said), "{e}");
        assert_eq!(fs::read_to_string(lab.path("good")).unwrap(), "old");
        assert_eq!(hidden(&lab, ""), [""; 0]);
    }
    // A folder that is a file: refused before anything is uploaded.
    let under = file(&lab, "good/x", "x");
    let e = lab
        .perform(1, place(vec![good.clone(), under]))
        .await
        .unwrap_err();
    assert_eq!(e.code, "place_failed");
    assert_eq!(fs::read_to_string(lab.path("good")).unwrap(), "old");
    let mut relative = good;
    relative.path = "../x".into();
    let e = lab.perform(1, place(vec![relative])).await.unwrap_err();
    assert_eq!(e.code, "bad_value");
}

/// Configure with commands that log to `log`; it "runs" while the file `up` exists.
fn service(lab: &Lab, body: &str, reload: &str) -> Step {
    let d = lab.dir.path().display();
    Step::Configure {
        software: "thing".into(),
        files: vec![file(lab, "conf", body)],
        running: Some(format!("test -e {d}/up")),
        start: Some(format!("echo start >>{d}/log; touch {d}/up; sleep 300 &")),
        reload: Some(format!("echo reload >>{d}/log; {reload}")),
    }
}

#[tokio::test]
async fn a_service_is_started_or_reloaded_or_left_alone() {
    let lab = Lab::new().await;
    let log = || fs::read_to_string(lab.path("log")).unwrap_or_default();
    let done = lab.perform(1, service(&lab, "1", "true")).await.unwrap();
    assert!(done.detail.ends_with("conf placed, started"), "{done:?}");
    let done = lab.perform(1, service(&lab, "1", "true")).await.unwrap();
    assert!(
        done.detail.ends_with("no file differed, runs already"),
        "{done:?}"
    );
    assert_eq!(log(), "start\n");
    // A reload that fails is owed: the files are equal the next time, the service must know.
    let failing = service(&lab, "2", "echo syntax error; exit 1");
    let e = lab.perform(1, failing).await.unwrap_err();
    assert_eq!((e.class, e.code), (Class::Permanent, "reload_failed"));
    assert!(
        e.detail
            .ends_with("failed with status 1 on spare1: syntax error"),
        "{e}"
    );
    let done = lab.perform(1, service(&lab, "2", "true")).await.unwrap();
    assert!(
        done.detail.ends_with("no file differed, reloaded"),
        "{done:?}"
    );
    let done = lab.perform(1, service(&lab, "2", "true")).await.unwrap();
    assert!(done.detail.ends_with("runs already"), "{done:?}");
    assert_eq!(log(), "start\nreload\nreload\n");
}

#[tokio::test]
async fn the_test_reads_everything_back() {
    let lab = Lab::new().await;
    fs::write(lab.path("conf"), "content").unwrap();
    let os = system();
    let test = |check: &str, body: &str, port: u16| Step::Test {
        os: os.clone(),
        installed: vec![("thing".into(), check.into())],
        digests: vec![(lab.text("conf"), digest(body))],
        answers: vec![ServiceTest {
            at: ([127, 0, 0, 1], port).into(),
            kind: CheckKind::default(),
            timeout: Duration::from_secs(1),
            limit: Duration::from_millis(300),
        }],
        paths: Vec::new(),
        sealed: Vec::new(),
    };
    let done = lab.perform(1, test("true", "content", lab.port)).await;
    let done = done.unwrap();
    assert_eq!(done.os.as_ref(), Some(&os));
    assert!(done.detail.contains("answers"), "{done:?}");
    let code = async |step| lab.perform(1, step).await.unwrap_err().code;
    assert_eq!(
        code(test("false", "content", lab.port)).await,
        "not_installed"
    );
    assert_eq!(
        code(test("true", "other", lab.port)).await,
        "digest_mismatch"
    );
    let silent = lab
        .perform(1, test("true", "content", 1))
        .await
        .unwrap_err();
    assert_eq!(silent.code, "service_silent");
    assert!(silent.detail.contains("127.0.0.1:1 "), "{silent}");
    let done = lab.perform(1, Step::Os { wanted: os }).await.unwrap();
    assert!(done.os.is_some());
}

#[tokio::test]
async fn a_look_shows_no_secret() {
    let lab = Lab::new().await;
    let mut sealed = file(&lab, "sealed", "token new-secret\n");
    sealed.secrets = vec![Sealed::named("token")];
    fs::write(lab.path("sealed"), "token old-secret\n").unwrap();
    let plain = file(&lab, "plain", "user x\n");
    fs::write(lab.path("plain"), "user x\npassword other-secret\n").unwrap();
    // What is shown of it ends in the middle of one.
    let long = file(&lab, "long", "short\n");
    let mut text = "12345678\n".repeat(7281);
    text.push_str("other-secret\n");
    assert!(
        (65536 - 11..65536 - 4).contains(&(text.len() - 13)),
        "{}",
        text.len()
    );
    fs::write(lab.path("long"), text).unwrap();
    let os = system();
    let values = [
        ("token", "new-secret"),
        ("other", "other-secret"),
        // A word of our own scripts, and one of every system's.
        ("word", "absent"),
        ("name", "root"),
        ("os", os.split('-').next().unwrap()),
    ];
    let values: Values = values.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let wanted = Wanted {
        os: system(),
        // The command is shown as the catalogue has it.
        installed: vec![("thing".into(), "printf other-; echo secret; exit 3".into())],
        files: vec![sealed, plain, long, file(&lab, "nowhere", "x\n")],
        masks: Masks::of(&values),
    };
    let found = lab.hands().look(&lab.server(), &wanted).await.unwrap();
    let objects: Vec<_> = found.iter().map(|d| d.object.as_str()).collect();
    let at = |name: &str| lab.text(name);
    assert_eq!(
        objects,
        [
            "software thing",
            &at("sealed"),
            &at("plain"),
            &at("long"),
            &at("nowhere")
        ]
    );
    let all = format!("{found:?}");
    for secret in ["new-secret", "old-secret", "other-s", "other-secret"] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
    assert!(
        found[1].detail.contains("another content"),
        "{:?}",
        found[1]
    );
    assert_eq!(found[1].diff, "");
    assert!(
        found[2].diff.contains("password ********"),
        "{:?}",
        found[2]
    );
    assert_eq!(found[4].detail, "not there");
    assert!(found[0].detail.ends_with("********"), "{:?}", found[0]);
}

#[tokio::test]
async fn no_digest_of_a_file_with_a_secret_is_told() {
    let lab = Lab::new().await;
    let mut conf = file(&lab, "conf", "token swordfish\n");
    conf.secrets = vec![Sealed::named("token")];
    fs::write(lab.path("conf"), "token tunafish\n").unwrap();
    let test = |sealed: Vec<RenderedFile>| Step::Test {
        os: system(),
        installed: Vec::new(),
        digests: vec![(lab.text("conf"), conf.sha256.clone())],
        answers: Vec::new(),
        paths: Vec::new(),
        sealed,
    };
    for (sealed, shown) in [(vec![conf.clone()], false), (Vec::new(), true)] {
        let e = lab.perform(1, test(sealed)).await.unwrap_err();
        assert_eq!(e.code, "digest_mismatch");
        for body in ["token swordfish\n", "token tunafish\n"] {
            assert_eq!(e.detail.contains(&digest(body)), shown, "{e}");
        }
    }
}

#[tokio::test]
async fn a_server_that_was_cleaned_has_nothing_of_ours() {
    let lab = Lab::new().await;
    lab.perform(1, lab.install("r-0", "echo hello\n", 9))
        .await
        .unwrap();
    lab.perform(1, service(&lab, "1", "true")).await.unwrap();
    fs::write(lab.path(".conf.understudy.0123456789abcdef"), "left").unwrap();
    fs::create_dir_all(lab.path("base/staging/r-9.x")).unwrap();
    let clean = Step::Clean {
        job: "clean-1".into(),
        role: "web".into(),
        script: "echo cleaned\n".into(),
        timeout: Duration::from_secs(9),
        variables: Default::default(),
        files: vec![lab.text("conf")],
    };
    // Twice: the first answer may have been lost.
    for _ in 0..2 {
        let done = lab.perform(1, clean.clone()).await.unwrap();
        assert_eq!(done.output, "cleaned\n");
    }
    assert!(!lab.path("conf").exists());
    assert_eq!(hidden(&lab, ""), [""; 0]);
    let left = |name: &str| -> Vec<_> {
        let entries = fs::read_dir(lab.path(name)).into_iter().flatten();
        entries.map(|e| e.unwrap().file_name()).collect()
    };
    assert_eq!(left("base/jobs"), ["clean-1"]);
    for folder in ["staging", "output", "pending"] {
        assert!(!lab.path(&format!("base/{folder}")).exists(), "{folder}");
    }
}
