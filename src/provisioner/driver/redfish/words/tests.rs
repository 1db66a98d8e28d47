use super::*;

/// Cut down from a controller of HPE's, with what this needs of it.
const SYSTEM: &str = r##"{
    "@odata.id": "/redfish/v1/Systems/1/", "@odata.etag": "W/\"7\"", "Id": "1", "PowerState": "PoweringOn",
    "Boot": {
        "BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideTarget": "None",
        "BootSourceOverrideTarget@Redfish.AllowableValues": ["None", "UsbCd", "Hdd", "Pxe"]
    },
    "Actions": {"#ComputerSystem.Reset": {
        "ResetType@Redfish.AllowableValues": ["ForceOn", "ForceOff", "ForceRestart"],
        "target": "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset/"
    }},
    "Links": {"ManagedBy": [{"@odata.id": "/redfish/v1/Managers/1/"}]}
}"##;

fn system() -> System {
    serde_json::from_str(SYSTEM).unwrap()
}

fn put(request: Request, boot: &Boot, mode: Option<BootMode>) -> Change {
    let drive: Drive =
        serde_json::from_str(r#"{"MediaTypes": ["CD", "DVD"], "Inserted": false}"#).unwrap();
    let path = "/redfish/v1/Systems/1/";
    change(
        request,
        boot,
        mode,
        (path, &system()),
        Some(("/drive", &drive)),
    )
    .unwrap()
}

#[test]
fn a_system_is_read() {
    let system = system();
    assert_eq!(system.etag.as_deref(), Some("W/\"7\""));
    assert_eq!(drives_of(&system), (None, Some("/redfish/v1/Managers/1/")));
    let read = reading(&system, None);
    // What is disabled boots from nowhere, and a power state on its way is neither.
    assert_eq!((read.power, read.boots_from), (Power::Changing, None));
}

#[test]
fn an_override_is_put_as_the_controller_knows_it() {
    let pxe = put(Request::Override, &Boot::Pxe, None);
    assert!(pxe.patch);
    let boot = json!({"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"});
    assert_eq!(pxe.body, json!({ "Boot": boot }));
    let media = Boot::VirtualMedia("https://i/x.iso".to_owned());
    let cd = put(Request::Override, &media, Some(BootMode::Uefi));
    let boot = cd.body.get("Boot").unwrap();
    assert_eq!(boot.get("BootSourceOverrideTarget").unwrap(), "UsbCd");
    assert_eq!(boot.get("BootSourceOverrideMode").unwrap(), "UEFI");
}

#[test]
fn power_is_asked_for_as_it_can_be() {
    let on = put(Request::PowerOn, &Boot::Pxe, None);
    assert_eq!(on.body, json!({"ResetType": "ForceOn"}));
    assert_eq!(
        on.path,
        "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset/"
    );
    let off = put(Request::PowerOff, &Boot::Pxe, None);
    assert_eq!(off.body, json!({"ResetType": "ForceOff"}));
}

#[test]
fn a_drive_without_inserted_is_judged_by_its_image() {
    let media = |text: &str| {
        serde_json::from_str::<Drive>(text)
            .unwrap()
            .media()
            .inserted
    };
    assert!(media(r#"{"Image": "https://i/x.iso"}"#));
    assert!(!media(r#"{"Image": ""}"#));
    // Sticky: what is named is not in it.
    assert!(!media(r#"{"Image": "https://i/x.iso", "Inserted": false}"#));
    let media = Boot::VirtualMedia("https://i/x.iso".to_owned());
    let insert = put(Request::Insert, &media, None);
    assert_eq!(insert.path, "/drive/Actions/VirtualMedia.InsertMedia");
    assert_eq!(insert.instead, Some(json!({"Image": "https://i/x.iso"})));
}

#[test]
fn a_complaint_is_one_line() {
    let body = br#"{"error": {"message": "general", "@Message.ExtendedInfo": [{"Message": "The value\nx"}]}}"#;
    assert_eq!(complaint(body), "The value x");
    assert_eq!(
        complaint(br#"{"error": {"message": "general"}}"#),
        "general"
    );
    assert_eq!(complaint(b"<html> no"), "<html> no");
}
