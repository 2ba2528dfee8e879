//! What is wished for: made, changed, removed. Instances follow in [`super::actual_lrp`].

use std::sync::Arc;

use bbs_models::{DesiredLrp, DesiredLrpUpdate, Error, ModificationTag};

use crate::state::Change;

pub fn desire(old: Option<Arc<DesiredLrp>>, lrp: DesiredLrp, epoch: String) -> Result<Change, Error> {
    if old.is_some() {
        return Err(Error::exists());
    }
    let lrp = DesiredLrp { modification_tag: ModificationTag::new(epoch, 0), ..lrp };
    Ok(Change::DesiredLrp { before: None, after: Some(Arc::new(lrp)) })
}

pub fn update(old: Option<Arc<DesiredLrp>>, update: DesiredLrpUpdate) -> Result<Change, Error> {
    let old = old.ok_or_else(Error::not_found)?;
    let new = DesiredLrp::clone(&old).updated(update);
    Ok(Change::DesiredLrp { before: Some(old), after: Some(Arc::new(new)) })
}

pub fn remove(old: Option<Arc<DesiredLrp>>) -> Result<Change, Error> {
    let old = old.ok_or_else(Error::not_found)?;
    Ok(Change::DesiredLrp { before: Some(old), after: None })
}
