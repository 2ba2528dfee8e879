//! A volume of the outside world that a driver mounts into a container.

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    pub driver: String,
    pub container_dir: String,
    pub mode: VolumeMode,
    pub device: VolumeDevice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeMode {
    ReadOnly,
    ReadWrite,
}

/// `mount_config` and `device_config` are JSON the driver understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeDevice {
    None,
    Shared { volume_id: String, mount_config: String },
    Dedicated { mounter_id: String, mount_config: String, device_config: String },
}
