use super::*;
use crate::{
    model::inventory::ServiceFile,
    provisioner::{plan::World, testing::*},
};

fn brief() -> (Brief, Server) {
    let world = World {
        directors: [("lb1".parse().unwrap(), registration("lb1"))].into(),
        ..World::default()
    };
    let inventory = inventory();
    let role = inventory.roles["web.shop.example"].clone();
    let web1 = &inventory.servers["web1"];
    let brief = Brief {
        failed: Some(ip("10.0.0.1")),
        role,
        software: inventory.software.clone(),
        files: inventory.files.clone(),
        services: world.services_with(&web1.addresses),
        need: crate::provisioner::select::Need {
            failed: "web1".into(),
            role: "web.shop.example".into(),
            os: "debian-12".into(),
            families: Default::default(),
            policy: Default::default(),
            failed_labels: Default::default(),
            install: crate::provisioner::select::Install::Forbidden,
        },
    };
    (brief, inventory.servers["spare1"].clone())
}

fn template(body: &str) -> ServiceFile {
    ServiceFile {
        body: body.into(),
        ..inventory().files[0].clone()
    }
}

fn rendered(body: &str) -> Result<String, RenderError> {
    let (brief, spare) = brief();
    file(&brief, &spare, &template(body)).map(|f| String::from_utf8(f.body).unwrap())
}

#[test]
fn fills_in_role_server_and_services() {
    let text = rendered(
        "# {{ role }} {{ domain }} {{ os }} {{ software }} for {{ failed }}\n\
         name {{ server.name }} {{ server.addresses | join(' ') }}\n\
         {% for s in services %}\n\
         listen {{ s.address }} {{ s.real_port }}; # {{ s.protocol }} {{ s.vip }} {{ s.port }} {{ s.forward }}\n\
         {% endfor %}\n\
         <{{ server.address_v4 }}>\n",
    )
    .unwrap();
    assert_eq!(
        text,
        "# web.shop.example shop.example debian-12 nginx for 10.0.0.1\n\
         name spare1 10.0.0.11 fd00::11\n\
         listen 10.0.0.11 8080; # tcp 192.0.2.1 80 nat\n\
         listen fd00::11 80; # tcp 2001:db8::1 80 dr\n\
         <10.0.0.11>\n"
    );
}

#[test]
fn a_variable_that_is_not_there_names_file_and_line() {
    let e = rendered("one\n{{ sever.name }}\n").unwrap_err();
    assert!(e.to_string().contains("/etc/nginx/conf.d/shop.conf"), "{e}");
    assert!(e.line().contains("undefined"), "{}", e.line());
    assert!(e.line().contains(":2"), "{}", e.line());
    assert!(rendered("{% for x in %}").is_err());
    assert!(parse(&template("{% for x in %}")).is_err());
}

#[test]
fn the_examples_site_listens_once_on_a_port_of_two_families() {
    let (mut brief, spare) = brief();
    for service in &mut brief.services {
        service.port = 80;
    }
    let body = include_str!("../../../config/inventory/files/shop.conf.j2");
    let text = file(&brief, &spare, &template(body)).unwrap().body;
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("listen 80;").count(), 1, "{text}");
    assert_eq!(text.matches("listen [::]:80;").count(), 1, "{text}");
}

#[test]
fn a_file_that_is_no_template_is_left_alone_and_digested() {
    let (brief, spare) = brief();
    let plain = ServiceFile {
        template: false,
        ..template("{{ untouched }}\n\n")
    };
    let f = file(&brief, &spare, &plain).unwrap();
    assert_eq!(f.body, b"{{ untouched }}\n\n");
    let abc = ServiceFile {
        template: false,
        ..template("abc")
    };
    assert_eq!(
        file(&brief, &spare, &abc).unwrap().sha256,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn nothing_is_escaped_whatever_the_file_is_called() {
    let (brief, spare) = brief();
    let html = ServiceFile {
        path: "/srv/index.html".into(),
        ..template("{{ '<b>&' }}")
    };
    assert_eq!(file(&brief, &spare, &html).unwrap().body, b"<b>&");
}

#[test]
fn a_scripts_environment() {
    let (brief, spare) = brief();
    let v = variables(&brief, &spare, "nginx");
    let list: Vec<String> = v.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        list,
        [
            "UNDERSTUDY_ADDRESS=10.0.0.11",
            "UNDERSTUDY_ADDRESSES=10.0.0.11 fd00::11",
            "UNDERSTUDY_ADDRESS_V4=10.0.0.11",
            "UNDERSTUDY_ADDRESS_V6=fd00::11",
            "UNDERSTUDY_DOMAIN=shop.example",
            "UNDERSTUDY_FAILED=10.0.0.1",
            "UNDERSTUDY_OS=debian-12",
            "UNDERSTUDY_ROLE=web.shop.example",
            "UNDERSTUDY_SERVER=spare1",
            "UNDERSTUDY_SERVICES=tcp/192.0.2.1:80,nat,8080 tcp/[2001:db8::1]:80,dr,80",
            "UNDERSTUDY_SOFTWARE=nginx",
            "UNDERSTUDY_VIPS_LOCAL=2001:db8::1",
        ]
    );
}

#[test]
fn a_secret_is_a_name_until_the_file_is_placed() {
    let (brief, spare) = brief();
    let text =
        "a {{ secret('token') }}\n{% if secret(\"x.y\") %}b {{ secret('token') }}{% endif %}\n";
    // In a condition it would be no secret any more.
    let e = file(&brief, &spare, &template(text)).unwrap_err();
    assert!(e.line().contains("as it is"), "{}", e.line());
    let text = "a {{ secret('token') }} {{ secret('token') }} {{ secret('x.y') }}\n";
    let mut f = file(&brief, &spare, &template(text)).unwrap();
    let names: Vec<_> = f.secrets.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["token", "x.y"]);
    let sealed = f.sha256.clone();
    assert!(String::from_utf8_lossy(&f.body).contains("{{ secret(\"token\") }}"));
    let values = [("token", "one"), ("x.y", "two")];
    f.reveal(&values.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    assert_eq!(f.body, b"a one one two\n");
    assert_ne!(f.sha256, sealed);
    for bad in [
        "{{ secret('token') | upper }}",
        "{{ secret('token') | length }}",
        "{{ secret('../x') }}",
        "{{ secret('') }}",
    ] {
        assert!(file(&brief, &spare, &template(bad)).is_err(), "{bad}");
    }
}
