use proptest::prelude::*;

use super::*;
use crate::model::inventory::Cleanup;

const ROLE: &str =
    "[[role]]\ncode = \"web\"\ndomain = \"shop\"\nos = \"debian-12\"\nsoftware = [\"nginx\"]\n";
const SOFTWARE: &str =
    "[[software]]\nname = \"nginx\"\nscript = \"scripts/x.sh\"\ntimeout = \"10s\"\n";

fn read(texts: [&str; 4]) -> Result<Inventory, String> {
    let [roles, software, service_config, servers] = texts;
    let texts = Texts {
        roles,
        software,
        service_config,
        servers,
    };
    let mut attach = |_: &str| Ok("true\n".to_owned());
    parse(Path::new("inv"), &texts, &mut attach).map_err(|e| FolderError::Mistakes(e).to_string())
}

#[test]
fn defaults() {
    let config = "[[service_config]]\ndomain = \"shop\"\nsoftware = \"nginx\"\npath = \"/x\"\n\
                  source = \"files/x\"\n";
    let inventory = read([ROLE, SOFTWARE, config, ""]).unwrap();
    let file = inventory.files.first().unwrap();
    assert_eq!(
        (file.mode, file.owner.as_str(), file.template),
        (0o644, "root", false)
    );
    assert_eq!(inventory.software.first().unwrap().os, None);
}

#[test]
fn a_text_with_a_nul_byte_is_a_mistake() {
    let role = ROLE.replace("\"shop\"", "\"sh\\u0000op\"");
    let said = read([&role, SOFTWARE, "", ""]).unwrap_err();
    assert!(
        said.contains("roles.toml:3:10: `domain` contains a NUL byte"),
        "{said}"
    );
    let role = format!("{ROLE}apart = [\"ra\\u0000ck\"]\nrequires = {{ size = \"\\u0000\" }}\n");
    let said = read([&role, SOFTWARE, "", ""]).unwrap_err();
    assert_eq!(said.matches("contains a NUL byte").count(), 2, "{said}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x"), "a\0b").unwrap();
    assert_eq!(attachment(dir.path(), "x"), Err(AttachmentError::Nul));
}

#[test]
fn two_software_of_a_role_cannot_place_one_file() {
    let role = ROLE.replace("[\"nginx\"]", "[\"nginx\", \"php\"]");
    let software = format!("{SOFTWARE}{}", SOFTWARE.replace("nginx", "php"));
    let config = "[[service_config]]\ndomain = \"shop\"\nsoftware = \"nginx\"\npath = \"/x\"\n\
                  source = \"files/x\"\n";
    let both = format!("{config}{}", config.replace("nginx", "php"));
    let said = read([&role, &software, &both, ""]).unwrap_err();
    assert!(
        said.contains("role web: nginx and php both place /x"),
        "{said}"
    );
    let elsewhere = format!(
        "{config}{}",
        config.replace("nginx", "php").replace("/x", "/y")
    );
    assert!(read([&role, &software, &elsewhere, ""]).is_ok());
}

#[test]
fn what_a_role_says_of_its_spares() {
    let role = format!(
        "{ROLE}requires = {{ size = \"l\" }}\nprefers = {{ zone = \"a\" }}\napart = [\"rack\"]\n\
         keep_warm = 2\ncleanup = \"scripts/clean.sh\"\n"
    );
    let server = "[[server]]\nname = \"s\"\naddresses = [\"10.0.0.1\"]\nhost_keys = [\"ssh-ed25519 \
                  AAAAC3NzaC1lZDI1NTE5AAAAIPZsKT+Q+xUnWZ98QoEc2b2B01lscwWwHe9Hqc6WqwBA\"]\n\
                  labels = { rack = \"r1\" }\nreserved_for = [\"web\"]\n";
    let inventory = read([&role, SOFTWARE, "", server]).unwrap();
    let spares = &inventory.roles["web"].spares;
    assert_eq!(spares.requires["size"], "l");
    assert_eq!(spares.prefers["zone"], "a");
    assert_eq!(spares.apart, ["rack"]);
    assert_eq!((spares.keep_warm, spares.low_water), (2, 1));
    assert!(
        matches!(spares.cleanup, Some(Cleanup::Script { timeout, .. }) if timeout.as_secs() == 300)
    );
    assert_eq!(inventory.servers["s"].labels["rack"], "r1");
    assert_eq!(inventory.servers["s"].reserved_for, ["web"]);

    let wrong = format!(
        "{ROLE}requires = \"l\"\nprefers = {{ zone = 1 }}\nkeep_warm = 10001\nlow_water = -1\n\
         cleanup_timeout = \"1m\"\n"
    );
    let server = server.replace("reserved_for = [\"web\"]", "reserved_for = [\"db\"]");
    let said = read([&wrong, SOFTWARE, "", &server]).unwrap_err();
    for words in [
        "roles.toml:6:12: `requires` is a table, as in requires = { rack = \"r1\" }",
        "roles.toml:7:20: `prefers.zone` is a text, in quotes",
        "roles.toml:8:13: `keep_warm` is a number of servers, 0 to 10000",
        "roles.toml:9:13: `low_water` is a number of servers, 0 to 10000",
        "roles.toml:10:19: `cleanup_timeout` is of `cleanup`, which is missing",
        "servers.toml:6:17: no role \"db\" in roles.toml; there is web",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }
}

#[test]
fn a_role_has_its_servers_cleaned_in_one_way() {
    const IMAGE: &str = "[[image]]\nos = \"debian-12\"\nboot = \"pxe\"\n";
    let with =
        |keys: &str, image: &str| read([&format!("{ROLE}{keys}\n{image}"), SOFTWARE, "", ""]);
    let inventory = with("clean = \"reinstall\"", IMAGE).unwrap();
    let cleanup = &inventory.roles["web"].spares.cleanup;
    assert_eq!(*cleanup, Some(Cleanup::Reinstall));
    for (keys, image, said) in [
        (
            "clean = \"reinstall\"\ncleanup = \"scripts/clean.sh\"",
            IMAGE,
            "roles.toml:6:9: a server is cleaned in one way: leave out `clean` or `cleanup`",
        ),
        (
            "clean = \"scripts/clean.sh\"",
            IMAGE,
            "roles.toml:6:9: `clean` is \"reinstall\"; a script is named by `cleanup`",
        ),
        (
            "clean = \"reinstall\"\ncleanup_timeout = \"1m\"",
            IMAGE,
            "roles.toml:7:19: `cleanup_timeout` is of `cleanup`, which is missing",
        ),
        (
            "clean = \"reinstall\"",
            "",
            "roles.toml:6:9: clean = \"reinstall\", and no [[image]] installs debian-12: add one",
        ),
    ] {
        let found = with(keys, image).unwrap_err();
        assert!(found.contains(said), "{said}\n{found}");
    }
}

#[test]
fn empty_files_are_an_empty_inventory() {
    assert_eq!(read([""; 4]).unwrap(), Inventory::default());
}

#[test]
fn a_file_that_is_no_toml_is_not_blamed_on_others() {
    let said = read([
        "[[role]",
        SOFTWARE,
        "",
        "[[server]]\nname = \"a\"\nrole = \"web\"\n",
    ]);
    let said = said.unwrap_err();
    assert!(said.contains("inv/roles.toml:1:"), "{said}");
    assert!(!said.contains("no role"), "{said}");
}

#[test]
fn a_missing_file_is_no_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let e = load(dir.path()).unwrap_err();
    assert!(
        matches!(&e, FolderError::Unreadable(files) if files.len() == 4),
        "{e}"
    );
}

#[test]
fn a_link_does_not_lead_out() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in FILES.into_iter().zip(["", SOFTWARE, "", ""]) {
        fs::write(dir.path().join(name), text).unwrap();
    }
    fs::create_dir(dir.path().join("scripts")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("scripts/x.sh")).unwrap();
    let said = load(dir.path()).unwrap_err().to_string();
    assert!(
        said.contains("software.toml:3:10: scripts/x.sh: lies outside"),
        "{said}"
    );
}

/// Text that is often TOML of ours, and often not quite.
fn nearly() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("[[role]]\n".to_owned()),
        Just("[[server]]\n".to_owned()),
        Just("[[software]]\n".to_owned()),
        Just("[[service_config]]\n".to_owned()),
        "(name|code|domain|software|os|script|timeout|source|path|mode|host_keys|addresses|template|ssh_port) = (\"[^\"\n]{0,9}\"|[0-9]{1,6}|true|\\[\"é\"\\]|\\{\\})\n",
        ".{0,20}",
        "\\PC{0,5}\n",
    ];
    prop::collection::vec(piece, 0..12).prop_map(|v| v.concat())
}

proptest! {
    #[test]
    fn never_panics(a in nearly(), b in nearly(), c in nearly(), d in nearly(), body in ".*") {
        let texts = Texts { roles: &a, software: &b, service_config: &c, servers: &d };
        let mut attach = |_: &str| Ok(body.clone());
        if let Err(e) = parse(Path::new("inv"), &texts, &mut attach) {
            prop_assert!(!e.is_empty());
            prop_assert!(FolderError::Mistakes(e).to_string().contains(':'));
        }
    }

    #[test]
    fn a_template_never_panics(body in "([a-z \n]|\\{\\{|\\}\\}|\\{%|%\\}|if|for|end|é){0,30}") {
        let config = "[[service_config]]\ndomain = \"shop\"\nsoftware = \"nginx\"\npath = \"/x\"\n\
                      source = \"x\"\ntemplate = true\n";
        let texts = Texts { roles: ROLE, software: SOFTWARE, service_config: config, servers: "" };
        let mut attach = |name: &str| Ok(if name == "x" { body.clone() } else { "true".into() });
        drop(parse(Path::new("inv"), &texts, &mut attach));
    }
}

const SPARE: &str = "[[server]]\nname = \"spare1\"\naddresses = [\"192.0.2.1\"]\n";

#[test]
fn drivers_and_images_are_read() {
    use crate::model::machine::{Boot, BootMode, Driver, Login};
    let roles = format!(
        "{ROLE}install = true\n[[image]]\nos = \"debian-12\"\nboot = \"virtual_media\"\n\
         image = \"https://images.example/d.iso\"\ntimeout = \"40m\"\n\
         enrolment_keys = [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOjHGtJGwZPpcbH1Nb5cjC9UwfssTOxihIlZu+QoNatm\"]\n"
    );
    let pin = "ab".repeat(32);
    let servers = format!(
        "{SPARE}wipe = true\ndriver = {{ kind = \"redfish\", url = \"https://bmc7\", system = \
         \"/redfish/v1/Systems/1\", credential = \"bmc\", pin_sha256 = \"{pin}\", login = \
         \"session\", boot_mode = \"legacy\" }}\n"
    );
    let inventory = read([&roles, SOFTWARE, "", &servers]).unwrap();
    assert!(inventory.roles["web"].install);
    let image = &inventory.images["debian-12"];
    assert_eq!(
        image.boot,
        Boot::VirtualMedia("https://images.example/d.iso".into())
    );
    assert_eq!(image.timeout, std::time::Duration::from_secs(2400));
    let spare = &inventory.servers["spare1"];
    let Driver::Redfish(redfish) = &spare.driver else {
        panic!("{:?}", spare.driver);
    };
    assert!(spare.wipe && spare.host_keys.is_empty());
    assert_eq!(redfish.door.pin.unwrap().0, [0xab; 32]);
    assert_eq!(
        (redfish.login, redfish.boot_mode),
        (Login::Session, Some(BootMode::Legacy))
    );
    let site = format!(
        "{SPARE}driver = {{ kind = \"http\", url = \"http://127.0.0.1:8900\", machine = \"7\", \
         credential = \"site\" }}\n"
    );
    // Nobody could be trusted.
    let said = read([ROLE, SOFTWARE, "", &site]).unwrap_err();
    assert!(said.contains("enrolment_keys"), "{said}");
    let inventory = read([&roles, SOFTWARE, "", &site]).unwrap();
    assert_eq!(inventory.servers["spare1"].driver.kind(), "http");
}

/// A line that was copied powers off and wipes another's machine.
#[test]
fn a_machine_is_named_once() {
    let driver = |url: &str| {
        format!(
            "driver = {{ kind = \"redfish\", url = \"{url}\", system = \"/redfish/v1/Systems/1\", \
             credential = \"bmc\" }}\n"
        )
    };
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOjHGtJGwZPpcbH1Nb5cjC9UwfssTOxihIlZu+QoNatm";
    let server = |n: u8, url: &str| {
        format!(
            "[[server]]\nname = \"s{n}\"\naddresses = [\"192.0.2.{n}\"]\nhost_keys = [\"{key}\"]\n{}",
            driver(url)
        )
    };
    let both = |a: &str, b: &str| {
        let servers = server(1, a) + &server(2, b);
        read([ROLE, SOFTWARE, "", &servers])
    };
    let said = both("https://bmc7", "https://BMC7:443").unwrap_err();
    assert!(
        said.contains("machine of a driver bmc7:443/redfish/v1/Systems/1 is already at line 1"),
        "{said}"
    );
    both("https://bmc7", "https://bmc8").unwrap();
    // It would be dropped without a word.
    let said = both("https://bmc7/redfish", "https://bmc8").unwrap_err();
    assert!(said.contains("the path is `system`"), "{said}");
}

#[test]
fn needs_are_of_the_role_and_end_somewhere() {
    let part =
        |name: &str, needs: &str| SOFTWARE.replace("nginx", name) + &format!("needs = [{needs}]\n");
    let role = ROLE.replace("[\"nginx\"]", "[\"nginx\", \"php\"]");
    let good = part("nginx", "\"php\"") + &part("php", "");
    let inventory = read([&role, &good, "", ""]).unwrap();
    assert_eq!(inventory.software[0].needs, ["php"]);

    let said = |role: &str, software: &str| read([role, software, "", ""]).unwrap_err();
    let lacks = said(ROLE, &good);
    assert!(lacks.contains("roles.toml:5:13"), "{lacks}");
    assert!(
        lacks.contains("needs \"php\", which this role lacks"),
        "{lacks}"
    );
    let unknown = said(ROLE, &part("nginx", "\"perl\""));
    assert!(unknown.contains("software.toml:5:10"), "{unknown}");
    assert!(unknown.contains("no software \"perl\""), "{unknown}");
    let circle = said(
        &role,
        &(part("nginx", "\"php\"") + &part("php", "\"nginx\"")),
    );
    assert!(circle.contains("software.toml:5:10"), "{circle}");
    assert!(
        circle.contains("needs itself by way of \"php\""),
        "{circle}"
    );
    let itself = said(ROLE, &part("nginx", "\"nginx\""));
    assert!(itself.contains("needs itself"), "{itself}");
}

#[test]
fn secrets_are_variables_and_validate_names_the_file() {
    let software = |names: &str| format!("{SOFTWARE}secrets = [{names}]\n");
    let inventory = read([ROLE, &software("\"DB_PASSWORD\""), "", ""]).unwrap();
    assert_eq!(inventory.software[0].secrets, ["DB_PASSWORD"]);
    for name in ["1A", "A-B", "PATH", "UNDERSTUDY_ROLE", ""] {
        let said = read([ROLE, &software(&format!("{name:?}")), "", ""]).unwrap_err();
        assert!(said.contains("software.toml:5:12"), "{said}");
    }
    let config = |command: &str| {
        format!(
            "[[service_config]]\ndomain = \"shop\"\nsoftware = \"nginx\"\npath = \"/x\"\n\
             source = \"files/x\"\nvalidate = \"{command}\"\n"
        )
    };
    let inventory = read([ROLE, SOFTWARE, &config("nginx -t -c {file}"), ""]).unwrap();
    assert!(inventory.files[0].validate.is_some());
    let said = read([ROLE, SOFTWARE, &config("nginx -t"), ""]).unwrap_err();
    assert!(
        said.contains("service_config.toml:6:12") && said.contains("{file}"),
        "{said}"
    );
    for command in [
        "nginx -t -c '{file}'",
        "sh -c 'visudo -cf {file}'",
        "x \\\"{file}\\\"",
    ] {
        let said = read([ROLE, SOFTWARE, &config(command), ""]).unwrap_err();
        assert!(said.contains("without quotes"), "{command}: {said}");
    }
    for command in ["echo 'it is' && test -s {file}", "echo it\\\\'s {file}"] {
        assert!(
            read([ROLE, SOFTWARE, &config(command), ""]).is_ok(),
            "{command}"
        );
    }
}
