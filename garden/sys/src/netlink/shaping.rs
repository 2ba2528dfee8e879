//! How fast a link may send, by the kernel's token bucket (`tbf`): what comes too fast waits a moment, then is dropped.

use super::Result;
use super::message::{Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE};
use super::route::Route;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TBF_PARAMETERS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
/// `TC_H_ROOT`: everything the link sends.
const ROOT: u32 = u32::MAX;
/// The number by which `tc` shows it: `1:`.
const HANDLE: u32 = 1 << 16;
/// So that the kernel reckons by itself, without a table of ours.
const LINK_LAYER_ETHERNET: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub bytes_per_second: u64,
    /// What may be sent at once after a pause.
    pub burst_bytes: u32,
    /// What may wait.
    pub queue_bytes: u32,
}

impl Route {
    /// From now on, whatever held before.
    pub fn limit_rate(&self, index: u32, rate: Rate) -> Result<()> {
        // struct tcmsg: family, padding, link, handle, parent, info
        let mut fixed = [0; 20];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[8..12].copy_from_slice(&HANDLE.to_ne_bytes());
        fixed[12..16].copy_from_slice(&ROOT.to_ne_bytes());
        let mut message = Message::new(libc::RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &fixed);
        message.text(TCA_KIND, "tbf").nested(TCA_OPTIONS, |options| {
            options
                .attribute(TBF_PARAMETERS, &parameters(rate))
                .attribute(TBF_RATE64, &rate.bytes_per_second.to_ne_bytes())
                .native_u32(TBF_BURST, rate.burst_bytes);
        });
        self.request(&format!("limit link {index} to {} bytes a second", rate.bytes_per_second), message)
    }
}

/// `struct tc_tbf_qopt`: the rate, the peak rate (none), then the queue, the bucket (given apart) and the unit.
fn parameters(rate: Rate) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[1] = LINK_LAYER_ETHERNET;
    let slow = u32::try_from(rate.bytes_per_second).unwrap_or(u32::MAX);
    bytes[8..12].copy_from_slice(&slow.to_ne_bytes());
    bytes[24..28].copy_from_slice(&rate.queue_bytes.to_ne_bytes());
    bytes
}
