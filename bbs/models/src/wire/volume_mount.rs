//! Volume mounts on the wire.

use prost::Message;
use serde::{Deserialize, Serialize};

use super::Invalid;
use super::json::*;
use crate as models;

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SharedDevice {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub mount_config: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DedicatedDevice {
    #[prost(string, tag = "1")]
    pub mounter_id: String,
    #[prost(string, tag = "2")]
    pub mount_config: String,
    #[prost(string, tag = "3")]
    pub device_config: String,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeMount {
    #[prost(string, tag = "1")]
    pub driver: String,
    #[prost(string, tag = "3")]
    pub container_dir: String,
    /// `r` or `rw`.
    #[prost(string, tag = "6")]
    pub mode: String,
    #[prost(message, optional, tag = "7")]
    pub shared: Option<SharedDevice>,
    #[prost(message, optional, tag = "8")]
    pub dedicated: Option<DedicatedDevice>,
}

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumePlacement {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "null_is_default")]
    pub driver_names: Vec<String>,
}

impl TryFrom<VolumeMount> for models::VolumeMount {
    type Error = Invalid;

    fn try_from(wire: VolumeMount) -> Result<Self, Invalid> {
        let mut invalid = Invalid::default();
        if wire.driver.is_empty() {
            invalid.add("invalid volume_mount driver");
        }
        let mode = match wire.mode.as_str() {
            "r" => models::VolumeMode::ReadOnly,
            "rw" => models::VolumeMode::ReadWrite,
            _ => {
                invalid.add("invalid volume_mount mode");
                models::VolumeMode::ReadOnly
            }
        };
        let device = match (wire.shared, wire.dedicated) {
            (Some(device), _) => {
                if device.volume_id.is_empty() {
                    invalid.add("invalid volume_mount volume id");
                }
                models::VolumeDevice::Shared {
                    volume_id: device.volume_id,
                    mount_config: device.mount_config,
                }
            }
            (None, Some(device)) => {
                if device.mounter_id.is_empty() {
                    invalid.add("invalid volume_mount mounter id");
                }
                models::VolumeDevice::Dedicated {
                    mounter_id: device.mounter_id,
                    mount_config: device.mount_config,
                    device_config: device.device_config,
                }
            }
            (None, None) => models::VolumeDevice::None,
        };
        invalid.or(Self { driver: wire.driver, container_dir: wire.container_dir, mode, device })
    }
}

impl From<models::VolumeMount> for VolumeMount {
    fn from(mount: models::VolumeMount) -> Self {
        let mode = match mount.mode {
            models::VolumeMode::ReadOnly => "r",
            models::VolumeMode::ReadWrite => "rw",
        };
        let (shared, dedicated) = match mount.device {
            models::VolumeDevice::None => (None, None),
            models::VolumeDevice::Shared { volume_id, mount_config } => {
                (Some(SharedDevice { volume_id, mount_config }), None)
            }
            models::VolumeDevice::Dedicated { mounter_id, mount_config, device_config } => {
                (None, Some(DedicatedDevice { mounter_id, mount_config, device_config }))
            }
        };
        Self {
            driver: mount.driver,
            container_dir: mount.container_dir,
            mode: mode.to_string(),
            shared,
            dedicated,
        }
    }
}
