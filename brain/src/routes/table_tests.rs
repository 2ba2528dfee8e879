//! Each line of a story: what the table is told, and what routers are told then. `+app 10.0.0.1:61001` registers,
//! `-` unregisters; names of the name service are written `~app.internal 10.255.0.0:0`.

use bbs_models::{
    ActualLrpInstanceKey, ActualLrpKey, ActualLrpNetInfo, DesiredLrpKey, MetricTagValue, PortMapping,
    PreferredAddress, Routes,
};

use super::*;

/// Host names with the port they lead to, such as `app:8080 www:8080`; `~name` is an internal one.
fn routes(names: &str) -> Routes {
    let (mut http, mut internal) = (Vec::new(), Vec::new());
    for name in names.split_ascii_whitespace() {
        match (name.strip_prefix('~'), name.split_once(':')) {
            (Some(hostname), _) => internal.push(serde_json::json!({ "hostname": hostname })),
            (None, Some((hostname, port))) => {
                let port: u16 = port.parse().unwrap();
                http.push(serde_json::json!({ "hostnames": [hostname], "port": port }));
            }
            _ => panic!("{name}"),
        }
    }
    let mut routes = Routes::new();
    routes.insert("cf-router", &http).unwrap();
    routes.insert("internal-router", &internal).unwrap();
    routes
}

fn desired(process_guid: &str, tag: u32, instances: u32, names: &str) -> RoutingInfo {
    RoutingInfo {
        key: DesiredLrpKey {
            process_guid: process_guid.into(),
            domain: "cf-apps".into(),
            log_guid: "log-guid".into(),
        },
        instances,
        routes: routes(names),
        modification_tag: ModificationTag::new("desired", tag),
        metric_tags: Default::default(),
    }
}

/// Its address is `10.0.0.1:HOST_PORT` for the container's 8080, one more for 9090.
fn running(guid: &str, index: u32, host_port: u16, tag: u32) -> ActualLrp {
    let port =
        |container_port, host_port| PortMapping { container_port, host_port, ..PortMapping::default() };
    let net_info = ActualLrpNetInfo {
        address: "10.0.0.1".into(),
        instance_address: "10.255.0.7".into(),
        ports: vec![port(8080, host_port), port(9090, host_port + 1)],
        ..Default::default()
    };
    let instance = ActualLrpInstanceKey::new(guid, "cell");
    let mut lrp = ActualLrp::running(ActualLrpKey::new("app", index, "cf-apps"), instance, net_info, 77);
    lrp.modification_tag = ModificationTag::new(guid, tag);
    lrp
}

fn evacuating(lrp: ActualLrp) -> ActualLrp {
    ActualLrp { presence: Presence::Evacuating, ..lrp }
}

fn of(process_guid: &str, mut lrp: ActualLrp) -> ActualLrp {
    lrp.key.process_guid = process_guid.into();
    lrp
}

fn text(registration: &Registration) -> String {
    let kind = if registration.audience == Audience::Router { "" } else { "~" };
    format!("{kind}{} {}:{}", registration.uris[0], registration.host, registration.port)
}

#[track_caller]
fn says(changes: Vec<Change>, expected: &[&str]) {
    let said: Vec<_> = changes
        .iter()
        .map(|change| match change {
            Change::Register(registration) => format!("+{}", text(registration)),
            Change::Unregister(registration) => format!("-{}", text(registration)),
        })
        .collect();
    assert_eq!(said, expected);
}

fn ports(table: &RoutingTable, hostname: &str) -> Vec<u16> {
    table.backends(hostname).iter().map(|backend| backend.port).collect()
}

/// `app` and `www` lead to instances a (61001) and b (61003).
fn table() -> RoutingTable {
    let mut table = RoutingTable::default();
    table.set_desired(&desired("app", 5, 2, "app:8080 www:8080"));
    table.set_actual(&running("a", 0, 61001, 5));
    table.set_actual(&running("b", 1, 61003, 5));
    table
}

#[test]
fn every_name_leads_to_every_running_instance() {
    let table = table();
    assert_eq!(ports(&table, "app"), [61001, 61003]);
    assert_eq!(ports(&table, "WWW:8080"), [61001, 61003]);
    assert_eq!(ports(&table, "other"), Vec::<u16>::new());
    let (all, next) = table.registrations_after(None);
    let all: Vec<_> = all.iter().map(text).collect();
    assert_eq!(all, ["app 10.0.0.1:61001", "www 10.0.0.1:61001", "app 10.0.0.1:61003", "www 10.0.0.1:61003"]);
    assert_eq!(next, None);
}

#[test]
fn routes_and_instances_come_in_any_order() {
    let mut table = RoutingTable::default();
    says(table.set_actual(&running("a", 0, 61001, 1)), &[]);
    says(table.set_desired(&desired("app", 1, 1, "app:8080")), &["+app 10.0.0.1:61001"]);
    says(table.remove_actual(&running("a", 0, 61001, 1)), &["-app 10.0.0.1:61001"]);
    says(table.set_actual(&running("b", 0, 61003, 1)), &["+app 10.0.0.1:61003"]);
    says(table.remove_desired("app", &ModificationTag::new("desired", 1)), &["-app 10.0.0.1:61003"]);
    says(table.remove_actual(&running("b", 0, 61003, 1)), &[]);
    assert!(table.processes.is_empty() && table.by_hostname.is_empty());
}

#[test]
fn only_what_changed_in_the_routes_is_told() {
    for (tag, names, expected) in [
        (6, "app:8080 www:8080", &[][..]),
        (6, "app:8080 www:8080 new:8080", &["+new 10.0.0.1:61001", "+new 10.0.0.1:61003"]),
        (5, "app:8080 www:8080 new:8080", &[]),
        (4, "app:8080", &[]),
        (6, "app:8080", &["-www 10.0.0.1:61001", "-www 10.0.0.1:61003"]),
        (
            6,
            "app:9090 www:8080",
            &["+app 10.0.0.1:61002", "+app 10.0.0.1:61004", "-app 10.0.0.1:61001", "-app 10.0.0.1:61003"],
        ),
        (6, "app:8080 www:7070", &["-www 10.0.0.1:61001", "-www 10.0.0.1:61003"]),
    ] {
        println!("{tag} {names}");
        says(table().set_desired(&desired("app", tag, 2, names)), expected);
    }
}

#[test]
fn news_of_an_instance_is_told_once_and_only_if_it_is_news() {
    let moved = &["+app 10.0.0.1:61009", "+www 10.0.0.1:61009", "-app 10.0.0.1:61001", "-www 10.0.0.1:61001"];
    for (lrp, expected) in [
        (running("a", 0, 61001, 5), &[][..]),
        (running("a", 0, 61001, 6), &[]),
        (running("a", 0, 61009, 4), &[]),
        (running("a", 0, 61009, 5), &[]),
        (running("a", 0, 61009, 6), moved),
        (running("c", 1, 61005, 1), &["+app 10.0.0.1:61005", "+www 10.0.0.1:61005"]),
        (running("c", 2, 61005, 1), &[]),
        (ActualLrp { presence: Presence::Suspect, ..running("a", 0, 61001, 6) }, &[]),
        (evacuating(running("a", 0, 61001, 6)), &[]),
    ] {
        println!("{lrp:?}");
        says(table().set_actual(&lrp), expected);
    }
}

#[test]
fn a_removal_that_is_old_removes_nothing() {
    let gone = &["-app 10.0.0.1:61001", "-www 10.0.0.1:61001"][..];
    for (tag, expected) in [(4, &[][..]), (5, gone), (6, gone)] {
        says(table().remove_actual(&running("a", 0, 61001, tag)), expected);
    }
    let mut table = table();
    says(table.remove_desired("app", &ModificationTag::new("desired", 4)), &[]);
    assert_eq!(table.remove_desired("app", &ModificationTag::new("desired", 6)).len(), 4);
}

#[test]
fn an_instance_that_is_not_routable_is_left_out_and_stays_so() {
    let mut table = table();
    let routable = |tag, routable| ActualLrp { routable: Some(routable), ..running("a", 0, 61001, tag) };
    says(table.set_actual(&routable(6, false)), &["-app 10.0.0.1:61001", "-www 10.0.0.1:61001"]);
    says(table.set_actual(&routable(5, true)), &[]);
    assert_eq!(ports(&table, "app"), [61003]);
    says(table.set_actual(&routable(7, true)), &["+app 10.0.0.1:61001", "+www 10.0.0.1:61001"]);
}

#[test]
fn an_instance_that_no_longer_runs_is_taken_back() {
    let mut claimed =
        ActualLrp::claimed(ActualLrpKey::new("app", 0, "d"), ActualLrpInstanceKey::new("a", "cell"), 78);
    claimed.modification_tag = ModificationTag::new("a", 6);
    says(table().set_actual(&claimed), &["-app 10.0.0.1:61001", "-www 10.0.0.1:61001"]);
}

#[test]
fn scaling_down_takes_routes_back_before_instances_stop() {
    let mut table = table();
    says(
        table.set_desired(&desired("app", 6, 1, "app:8080")),
        &["-app 10.0.0.1:61003", "-www 10.0.0.1:61001", "-www 10.0.0.1:61003"],
    );
    says(table.remove_actual(&running("b", 1, 61003, 5)), &[]);
}

#[test]
fn an_evacuating_twin_keeps_the_route_until_both_are_gone() {
    let ordinary = running("a", 0, 61001, 5);
    let gone = &["-app 10.0.0.1:61001", "-www 10.0.0.1:61001"][..];
    for first_gone in [&ordinary, &evacuating(ordinary.clone())] {
        let mut table = table();
        says(table.set_actual(&evacuating(ordinary.clone())), &[]);
        says(table.remove_actual(first_gone), &[]);
        assert_eq!(ports(&table, "app"), [61001, 61003]);
        let last = if *first_gone == ordinary { evacuating(ordinary.clone()) } else { ordinary.clone() };
        says(table.remove_actual(&last), gone);
    }
}

#[test]
fn a_replacement_is_led_to_beside_the_evacuating_one() {
    let mut table = table();
    table.set_actual(&evacuating(running("a", 0, 61001, 6)));
    table.remove_actual(&running("a", 0, 61001, 5));
    says(table.set_actual(&running("c", 0, 61005, 1)), &["+app 10.0.0.1:61005", "+www 10.0.0.1:61005"]);
    says(
        table.remove_actual(&evacuating(running("a", 0, 61001, 6))),
        &["-app 10.0.0.1:61001", "-www 10.0.0.1:61001"],
    );
}

#[test]
fn two_lrps_share_a_name_and_lose_it_one_by_one() {
    let mut table = table();
    table.set_desired(&desired("green", 1, 1, "app:8080"));
    says(table.set_actual(&of("green", running("g", 0, 61007, 1))), &["+app 10.0.0.1:61007"]);
    assert_eq!(ports(&table, "app"), [61001, 61003, 61007]);
    assert_eq!(table.remove_desired("app", &ModificationTag::new("desired", 5)).len(), 4);
    assert_eq!(ports(&table, "app"), [61007]);
    assert_eq!(ports(&table, "www"), Vec::<u16>::new());
}

#[test]
fn an_address_that_was_given_on_is_not_taken_back_from_its_new_owner() {
    let mut table = table();
    assert_eq!(table.set_actual(&running("c", 1, 61001, 1)).len(), 2);
    says(table.remove_actual(&running("a", 0, 61001, 5)), &[]);
    assert_eq!(ports(&table, "app"), [61003, 61001]);
}

#[test]
fn a_changed_property_is_registered_over_the_old_one() {
    let mut table = table();
    let mut info = desired("app", 6, 2, "");
    let route = serde_json::json!([{
        "hostnames": ["app"], "port": 8080, "route_service_url": "https://rs", "isolation_segment": "is",
        "protocol": "http2", "options": {"loadbalancing": "least-connection"},
    }]);
    info.routes.insert("cf-router", &route).unwrap();
    says(
        table.set_desired(&info),
        &["+app 10.0.0.1:61001", "+app 10.0.0.1:61003", "-www 10.0.0.1:61001", "-www 10.0.0.1:61003"],
    );
    assert_eq!(ports(&table, "app"), [61001, 61003]);
}

#[test]
fn internal_names_lead_to_instances_addresses_whatever_their_ports() {
    let mut table = RoutingTable::default();
    table.set_desired(&desired("app", 1, 2, "~app.internal"));
    says(table.set_actual(&running("a", 0, 61001, 1)), &["+~app.internal 10.255.0.7:0"]);
    says(table.set_actual(&running("a", 0, 61009, 2)), &[]);
    says(table.set_actual(&evacuating(running("a", 0, 61009, 3))), &[]);
    says(table.remove_actual(&running("a", 0, 61009, 2)), &[]);
    says(table.remove_actual(&evacuating(running("a", 0, 61009, 3))), &["-~app.internal 10.255.0.7:0"]);
}

#[test]
fn an_instance_may_be_led_to_by_its_own_address() {
    let prefers = |preferred_address| {
        let mut lrp = running("a", 0, 61001, 1);
        if let bbs_models::ActualLrpState::Running { net_info, .. } = &mut lrp.state {
            net_info.preferred_address = preferred_address;
        }
        lrp
    };
    let (own, cells) = ("+app 10.255.0.7:8080", "+app 10.0.0.1:61001");
    for (mut table, preferred, expected) in [
        (RoutingTable::default(), PreferredAddress::Unknown, cells),
        (RoutingTable::default(), PreferredAddress::Instance, own),
        (RoutingTable::direct(), PreferredAddress::Unknown, own),
        (RoutingTable::direct(), PreferredAddress::Host, cells),
    ] {
        table.set_desired(&desired("app", 1, 1, "app:8080"));
        says(table.set_actual(&prefers(preferred)), &[expected]);
    }
}

#[test]
fn a_reading_of_everything_tells_the_difference() {
    let app = || desired("app", 5, 2, "app:8080 www:8080");
    let (a, b) = (running("a", 0, 61001, 5), running("b", 1, 61003, 5));
    let twin = evacuating(a.clone());
    let instances_gone =
        &["-app 10.0.0.1:61001", "-www 10.0.0.1:61001", "-app 10.0.0.1:61003", "-www 10.0.0.1:61003"][..];
    let lrp_gone =
        &["-app 10.0.0.1:61001", "-app 10.0.0.1:61003", "-www 10.0.0.1:61001", "-www 10.0.0.1:61003"][..];
    for (desired, actual, domains, expected) in [
        (vec![app()], vec![a.clone(), b.clone()], &["cf-apps"][..], &[][..]),
        (vec![app()], vec![twin, b.clone()], &["cf-apps"], &[]),
        (vec![app()], vec![a.clone()], &["cf-apps"], &["-app 10.0.0.1:61003", "-www 10.0.0.1:61003"]),
        (vec![], vec![a.clone(), b.clone()], &["cf-apps"], lrp_gone),
        (vec![], vec![a, b], &["other"], &[]),
        (vec![], vec![], &["cf-apps"], instances_gone),
    ] {
        let domains: Vec<_> = domains.iter().map(|domain| domain.to_string()).collect();
        let mut table = table();
        says(table.sync(&desired, &actual, &domains), expected);
        says(table.sync(&desired, &actual, &domains), &[]);
    }
}

#[test]
fn everything_comes_in_pages_that_split_no_process() {
    let mut table = RoutingTable::default();
    for app in 0..600 {
        let name = format!("app{app:03}");
        table.set_desired(&desired(&name, 1, 1, &format!("{name}:8080 www.{name}:8080")));
        table.set_actual(&of(&name, running(&name, 0, 61001, 1)));
    }
    let (mut from, mut pages) = (None, Vec::new());
    loop {
        let (page, next) = table.registrations_after(from.as_deref());
        pages.push(page.len());
        match next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    assert_eq!(pages, [500, 500, 200]);
}

#[test]
fn a_registration_reads_as_routers_expect() {
    let mut table = RoutingTable::default();
    let mut info = desired("app", 1, 1, "~app.internal");
    let route = serde_json::json!([
        { "hostnames": ["app.example.com/path"], "port": 8080, "route_service_url": "https://rs",
          "isolation_segment": "is", "protocol": "http2", "options": {"loadbalancing": "round-robin"} },
        { "hostnames": ["broken"], "port": 99999 },
        { "hostnames": ["nowhere"], "port": 1 },
    ]);
    info.routes.insert("cf-router", &route).unwrap();
    info.metric_tags.insert("index".into(), MetricTagValue::Index);
    info.metric_tags.insert("space".into(), MetricTagValue::Static("dev".into()));
    table.set_desired(&info);
    let mut lrp = ActualLrp { availability_zone: "z1".into(), ..running("a", 0, 61001, 1) };
    if let bbs_models::ActualLrpState::Running { net_info, .. } = &mut lrp.state {
        net_info.ports[0].host_tls_proxy_port = Some(61443);
    }
    let told = table.set_actual(&lrp);
    let [Change::Register(http), Change::Register(internal)] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(
        serde_json::to_value(http).unwrap(),
        serde_json::json!({
            "host": "10.0.0.1", "port": 61001, "tls_port": 61443, "uris": ["app.example.com/path"],
            "protocol": "http2", "app": "log-guid", "route_service_url": "https://rs",
            "private_instance_id": "a", "private_instance_index": "0", "server_cert_domain_san": "a",
            "isolation_segment": "is", "endpoint_updated_at_ns": 77, "availability_zone": "z1",
            "tags": {"component": "route-emitter", "index": "0", "space": "dev"},
            "options": {"loadbalancing": "round-robin"},
        })
    );
    assert_eq!(
        serde_json::to_value(internal).unwrap(),
        serde_json::json!({
            "host": "10.255.0.7", "port": 0, "uris": ["app.internal", "0.app.internal"], "app": "log-guid",
            "private_instance_index": "0", "endpoint_updated_at_ns": 77, "availability_zone": "z1",
            "tags": {"component": "route-emitter"},
        })
    );
    let (again, _) = table.registrations_after(None);
    assert!(again.iter().all(|registration| registration.endpoint_updated_at_ns.is_none()));
}
