//! Why a step did not do what it was there for.

use std::fmt;

pub(crate) type Result = std::result::Result<(), StepError>;

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum StepError {
    Cancelled,
    /// It was told to stop, did not within its time, and was killed.
    ExceededGracefulShutdownInterval,
    /// Not even killing ended it in time.
    ExitTimeout,
    /// A codependent child that should have gone on ended well.
    CodependentExited,
    /// Meant for the application's logs too.
    Emittable(String),
    /// A reason, but nothing to put into the application's logs.
    Plain(String),
    Many(Vec<StepError>),
}

impl StepError {
    /// Of several children; none failing is success. Nested ones are laid flat.
    pub fn of(errors: Vec<StepError>) -> Result {
        let mut flat = Vec::new();
        for error in errors {
            match error {
                StepError::Many(inner) => flat.extend(inner),
                error => flat.push(error),
            }
        }
        if flat.is_empty() { Ok(()) } else { Err(StepError::Many(flat)) }
    }

    pub fn emittable(&self) -> Option<&str> {
        match self {
            StepError::Emittable(message) => Some(message),
            _ => None,
        }
    }

    /// Something had to be killed, or was not ended even so.
    pub fn is_overdue(&self) -> bool {
        match self {
            StepError::ExceededGracefulShutdownInterval | StepError::ExitTimeout => true,
            StepError::Many(errors) => errors.iter().any(StepError::is_overdue),
            _ => false,
        }
    }

    /// Beside another's error it says nothing worth reading.
    fn is_consequence(&self) -> bool {
        matches!(self, StepError::Cancelled | StepError::ExceededGracefulShutdownInterval)
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepError::Cancelled => f.write_str("cancelled"),
            StepError::ExceededGracefulShutdownInterval => f.write_str("exceeded graceful shutdown interval"),
            StepError::ExitTimeout => f.write_str("process did not exit"),
            StepError::CodependentExited => f.write_str("Codependent step exited"),
            StepError::Emittable(message) | StepError::Plain(message) => f.write_str(message),
            StepError::Many(errors) => {
                let told: Vec<_> = errors.iter().filter(|error| !error.is_consequence()).collect();
                let texts: Vec<_> = told.iter().map(|error| error.to_string()).collect();
                f.write_str(
                    &texts.iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>().join("; "),
                )
            }
        }
    }
}

impl std::error::Error for StepError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_errors_tell_only_the_causes() {
        let cause = StepError::Emittable("APP: Exited with status 3".to_string());
        let second = StepError::Plain("disk on fire".to_string());
        let empty = StepError::Emittable(String::new());
        let table = [
            (vec![StepError::Cancelled], ""),
            (vec![cause.clone(), StepError::Cancelled], "APP: Exited with status 3"),
            (vec![StepError::Cancelled, cause.clone(), second], "APP: Exited with status 3; disk on fire"),
            (vec![cause.clone(), empty], "APP: Exited with status 3"),
            (
                vec![StepError::ExitTimeout, StepError::ExceededGracefulShutdownInterval],
                "process did not exit",
            ),
            (
                vec![StepError::Many(vec![cause, StepError::CodependentExited])],
                "APP: Exited with status 3; Codependent step exited",
            ),
        ];
        for (errors, told) in table {
            assert_eq!(StepError::of(errors).unwrap_err().to_string(), told);
        }
        assert_eq!(StepError::of(Vec::new()), Ok(()));
    }
}
