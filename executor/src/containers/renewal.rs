//! A container's certificates are replaced before they end, from its first step to its last.
//!
//! The clock is looked at now and then instead of slept for once: it may be set, and stands still for a machine that sleeps.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use super::life::Work;
use crate::edge::Edge;
use crate::{Container, InstanceIdentity, credentials, steps};

/// After a renewal that failed.
const RETRY_PERIOD: Duration = Duration::from_secs(60);
/// Whatever the authority's validity and the clock say.
const PAUSE_MIN: Duration = Duration::from_millis(100);

impl Work {
    /// May be dropped. The certificates were issued just now.
    pub(super) async fn renew_credentials(&self, container: &Container, edge: Option<&Edge>) -> Infallible {
        let config = &self.shared.config;
        let Some(authority) = &config.instance_identity else { return std::future::pending().await };
        let ip = container.internal_ip.or(container.external_ip);
        let mut issued_ns = config.clock.now_ns();
        let (mut other_routes, mut failed) = (false, false);
        loop {
            let left = || credentials::renewal_in(issued_ns, config.clock.now_ns(), authority.validity);
            let pause = if failed { RETRY_PERIOD } else { left().min(config.clock_look_period) };
            tokio::select! {
                () = tokio::time::sleep(pause.max(PAUSE_MIN)) => {}
                () = self.routes_changed.notified() => other_routes = true,
            }
            let is_due = left().is_zero();
            if !is_due && !other_routes {
                continue;
            }
            let now_ns = config.clock.now_ns();
            let last = credentials::left(issued_ns, now_ns, authority.validity);
            let identity = if is_due { self.renew_identity(authority, ip, edge, last) } else { Ok(()) };
            match identity.and_then(|()| self.renew_container_to_container(authority, edge, last)) {
                Ok(()) => {
                    (other_routes, failed) = (false, false);
                    issued_ns = if is_due { now_ns } else { issued_ns };
                }
                Err(error) => {
                    tracing::error!(guid = self.guid, error, "executor.cannot-renew-credentials");
                    failed = true;
                }
            }
        }
    }

    fn renew_identity(
        &self,
        authority: &InstanceIdentity,
        ip: Option<IpAddr>,
        edge: Option<&Edge>,
        last: Duration,
    ) -> Result<(), String> {
        let config = &self.shared.config;
        let issued = credentials::identity(config, authority, &self.guid, &self.run_info, ip)
            .and_then(|issued| credentials::write(config, &self.guid, &issued).map(|()| issued))
            .map_err(|error| steps::report(&error))?;
        edge.map_or(Ok(()), |edge| edge.show_routers(&issued, last)).map_err(|error| steps::report(&error))
    }

    fn renew_container_to_container(
        &self,
        authority: &InstanceIdentity,
        edge: Option<&Edge>,
        last: Duration,
    ) -> Result<(), String> {
        let Some(edge) = edge else { return Ok(()) };
        let config = &self.shared.config;
        // As they are now: they may have changed since the container was started.
        let now = self.shared.store.get(&self.guid).and_then(|container| container.run_info);
        let routes = now.map(|run_info| run_info.internal_routes.clone()).unwrap_or_default();
        let issued =
            credentials::container_to_container(config, authority, &self.guid, &self.run_info, &routes)
                .map_err(|error| steps::report(&error))?;
        edge.show_containers(&issued, last).map_err(|error| steps::report(&error))
    }
}
