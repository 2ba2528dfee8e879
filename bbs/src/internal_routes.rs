//! The one kind of route that the BBS reads: host names under which instances find each other. Pure.

use std::collections::BTreeSet;

use bbs_models::Routes;
use serde::Deserialize;

const INTERNAL_ROUTER: &str = "internal-router";

#[derive(Deserialize)]
struct InternalRoute {
    hostname: String,
}

/// The host names in an LRP's routes; routes that cannot be read name none.
pub fn of(routes: &Routes) -> Vec<String> {
    match routes.read::<Option<Vec<InternalRoute>>>(INTERNAL_ROUTER) {
        Some(Ok(Some(routes))) => routes.into_iter().map(|route| route.hostname).collect(),
        Some(Ok(None) | Err(_)) | None => Vec::new(),
    }
}

/// The new host names, if they are others than before.
pub fn changed(before: &Routes, after: &Routes) -> Option<Vec<String>> {
    let after = of(after);
    (!are_same(&of(before), &after)).then_some(after)
}

/// In whatever order.
pub fn are_same(some: &[String], others: &[String]) -> bool {
    some.iter().collect::<BTreeSet<_>>() == others.iter().collect::<BTreeSet<_>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(json: &str) -> Routes {
        let mut routes = Routes::new();
        routes.insert_raw(INTERNAL_ROUTER, json.into()).unwrap();
        routes
    }

    #[test]
    fn only_other_names_are_a_change() {
        let two = routes(r#"[{"hostname":"a.internal"},{"hostname":"b.internal"}]"#);
        let turned = routes(r#"[{"hostname":"b.internal"},{"hostname":"a.internal"}]"#);
        let one = routes(r#"[{"hostname":"a.internal"}]"#);
        assert_eq!(changed(&two, &turned), None);
        assert_eq!(changed(&two, &one), Some(vec!["a.internal".to_string()]));
        assert_eq!(changed(&one, &Routes::new()), Some(vec![]));
        assert_eq!(changed(&routes("null"), &routes("7")), None);
    }
}
