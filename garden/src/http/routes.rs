//! The routes of the Garden API. Pure.

use garden_client::wire::{decode_query, decode_segment};

use crate::relay::OutputKind;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Bandwidth,
    Cpu,
    Disk,
    Memory,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Ping,
    Capacity,
    List { properties: Vec<(String, String)> },
    Create,
    BulkInfo { handles: Vec<String> },
    BulkMetrics { handles: Vec<String> },
    Info { handle: String },
    Destroy { handle: String },
    Stop { handle: String },
    StreamIn { handle: String, user: String, destination: String },
    StreamOut { handle: String, user: String, source: String },
    CurrentLimit { handle: String, limit: Limit },
    NetIn { handle: String },
    NetOut { handle: String },
    BulkNetOut { handle: String },
    SetGraceTime { handle: String },
    Properties { handle: String },
    Property { handle: String, name: String },
    SetProperty { handle: String, name: String },
    RemoveProperty { handle: String, name: String },
    Metrics { handle: String },
    Run { handle: String },
    Attach { handle: String, process_id: String },
    Output { handle: String, process_id: String, stream_id: String, kind: OutputKind },
}

/// The methods by which a target can be asked for; none: there is no such target.
pub fn methods(target: &str) -> Vec<&'static str> {
    ["GET", "PUT", "POST", "DELETE"].into_iter().filter(|method| parse(method, target).is_some()).collect()
}

pub fn parse(method: &str, target: &str) -> Option<Route> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let segments: Vec<String> =
        path.strip_prefix('/')?.split('/').map(decode_segment).collect::<Option<_>>()?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let query = || decode_query(query);
    match (method, segments.as_slice()) {
        ("GET", ["ping"]) => Some(Route::Ping),
        ("GET", ["capacity"]) => Some(Route::Capacity),
        ("GET", ["containers"]) => Some(Route::List { properties: query() }),
        ("POST", ["containers"]) => Some(Route::Create),
        ("GET", ["containers", "bulk_info"]) => Some(Route::BulkInfo { handles: handles(query()) }),
        ("GET", ["containers", "bulk_metrics"]) => Some(Route::BulkMetrics { handles: handles(query()) }),
        ("DELETE", ["containers", handle]) => Some(Route::Destroy { handle: (*handle).into() }),
        (method, ["containers", handle, rest @ ..]) => of_container(method, (*handle).into(), rest, query),
        _ => None,
    }
}

fn of_container(
    method: &str,
    handle: String,
    rest: &[&str],
    query: impl FnOnce() -> Vec<(String, String)>,
) -> Option<Route> {
    let owned = |text: &str| text.to_owned();
    Some(match (method, rest) {
        ("GET", ["info"]) => Route::Info { handle },
        ("PUT", ["stop"]) => Route::Stop { handle },
        ("GET", ["metrics"]) => Route::Metrics { handle },
        ("PUT", ["grace_time"]) => Route::SetGraceTime { handle },
        ("PUT", ["files"]) => {
            let query = query();
            Route::StreamIn { handle, user: value(&query, "user"), destination: value(&query, "destination") }
        }
        ("GET", ["files"]) => {
            let query = query();
            Route::StreamOut { handle, user: value(&query, "user"), source: value(&query, "source") }
        }
        ("GET", ["limits", kind]) => Route::CurrentLimit { handle, limit: limit(kind)? },
        ("POST", ["net", "in"]) => Route::NetIn { handle },
        ("POST", ["net", "out"]) => Route::NetOut { handle },
        ("POST", ["net", "out", "bulk"]) => Route::BulkNetOut { handle },
        ("GET", ["properties"]) => Route::Properties { handle },
        ("GET", ["properties", name]) => Route::Property { handle, name: owned(name) },
        ("PUT", ["properties", name]) => Route::SetProperty { handle, name: owned(name) },
        ("DELETE", ["properties", name]) => Route::RemoveProperty { handle, name: owned(name) },
        ("POST", ["processes"]) => Route::Run { handle },
        ("GET", ["processes", process_id]) => Route::Attach { handle, process_id: owned(process_id) },
        ("GET", ["processes", process_id, "attaches", stream_id, kind]) => Route::Output {
            handle,
            process_id: owned(process_id),
            stream_id: owned(stream_id),
            kind: output_kind(kind)?,
        },
        _ => return None,
    })
}

fn handles(query: Vec<(String, String)>) -> Vec<String> {
    value(&query, "handles").split(',').filter(|handle| !handle.is_empty()).map(str::to_owned).collect()
}

fn value(query: &[(String, String)], name: &str) -> String {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap_or_default()
}

fn limit(kind: &str) -> Option<Limit> {
    match kind {
        "bandwidth" => Some(Limit::Bandwidth),
        "cpu" => Some(Limit::Cpu),
        "disk" => Some(Limit::Disk),
        "memory" => Some(Limit::Memory),
        _ => None,
    }
}

fn output_kind(kind: &str) -> Option<OutputKind> {
    match kind {
        "stdout" => Some(OutputKind::Stdout),
        "stderr" => Some(OutputKind::Stderr),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: &str, expected: Option<Route>) {
        let (method, target) = request.split_once(' ').unwrap();
        assert_eq!(parse(method, target), expected, "{request}");
    }

    #[test]
    fn requests_find_their_routes() {
        let handle = || "h".to_owned();
        check("GET /ping", Some(Route::Ping));
        check("POST /ping", None);
        check("GET /", None);
        check("GET /containers?a=b+c", Some(Route::List { properties: vec![("a".into(), "b c".into())] }));
        check("DELETE /containers/a%2Fb", Some(Route::Destroy { handle: "a/b".into() }));
        check(
            "GET /containers/bulk_info?handles=a%2Cb",
            Some(Route::BulkInfo { handles: vec!["a".into(), "b".into()] }),
        );
        check("GET /containers/bulk_info?handles=", Some(Route::BulkInfo { handles: vec![] }));
        let stream_in =
            Route::StreamIn { handle: handle(), user: "vcap".into(), destination: "/home/x".into() };
        check("PUT /containers/h/files?user=vcap&destination=%2Fhome%2Fx", Some(stream_in));
        check(
            "GET /containers/h/limits/memory",
            Some(Route::CurrentLimit { handle: handle(), limit: Limit::Memory }),
        );
        check("GET /containers/h/limits/other", None);
        check("POST /containers/h/net/out/bulk", Some(Route::BulkNetOut { handle: handle() }));
        check(
            "PUT /containers/h/properties/x",
            Some(Route::SetProperty { handle: handle(), name: "x".into() }),
        );
        check(
            "GET /containers/h/processes/p",
            Some(Route::Attach { handle: handle(), process_id: "p".into() }),
        );
        let output = Route::Output {
            handle: handle(),
            process_id: "p".into(),
            stream_id: "3".into(),
            kind: OutputKind::Stderr,
        };
        check("GET /containers/h/processes/p/attaches/3/stderr", Some(output));
        check("GET /containers/h/processes/p/attaches/3/stdin", None);
        check("GET /containers/%zz/info", None);
        check("GET ping", None);
        check("GET /ping/", None);
        check("GET /containers//info", Some(Route::Info { handle: String::new() }));
    }

    #[test]
    fn a_target_knows_its_methods() {
        assert_eq!(methods("/containers"), ["GET", "POST"]);
        assert_eq!(methods("/containers/h/properties/p"), ["GET", "PUT", "DELETE"]);
        assert_eq!(methods("/nonsense"), [] as [&str; 0]);
    }
}
