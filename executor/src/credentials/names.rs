//! The names that a certificate says it is for, as text: what a list of names that are let in is compared with.
//!
//! Reads what a stranger wrote: nothing is taken for granted, and what is not understood is no name.

use std::net::IpAddr;

use super::der::{self, Split};

const SUBJECT_ALT_NAME: &[u8] = &[0x55, 29, 17];
/// Of a certificate's last field but its signature.
const EXTENSIONS: u8 = 0xA3;
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

/// Host names, mail addresses, URIs and addresses.
pub(crate) fn alternative_names(certificate: &[u8]) -> Vec<String> {
    let Some(extension) = extension(certificate, SUBJECT_ALT_NAME) else { return Vec::new() };
    let Some(names) = der::split(extension) else { return Vec::new() };
    elements(names.content).filter_map(|name| text(name.tag, name.content)).collect()
}

fn text(tag: u8, content: &[u8]) -> Option<String> {
    match tag {
        EMAIL | DNS | URI => std::str::from_utf8(content).ok().map(str::to_string),
        IP => match content.len() {
            4 => <[u8; 4]>::try_from(content).ok().map(|octets| IpAddr::from(octets).to_string()),
            16 => <[u8; 16]>::try_from(content).ok().map(|octets| IpAddr::from(octets).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// The content of an extension, without its wrapping.
fn extension<'a>(certificate: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let signed = der::split(der::split(certificate)?.content)?;
    let field = elements(signed.content).find(|field| field.tag == EXTENSIONS)?;
    let extensions = der::split(field.content)?;
    elements(extensions.content).find_map(|extension| {
        let id = der::split(extension.content)?;
        let is_wanted = id.tag == der::OBJECT_ID && id.content == wanted;
        let value = elements(id.after).find(|part| part.tag == der::OCTET_STRING)?;
        is_wanted.then_some(value.content)
    })
}

/// One after the other, up to the first that is broken.
fn elements(mut rest: &[u8]) -> impl Iterator<Item = Split<'_>> {
    std::iter::from_fn(move || {
        let element = der::split(rest)?;
        rest = element.after;
        Some(element)
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn every_kind_of_name_is_found() {
        let mut params = CertificateParams::new(vec!["router.internal".into()]).unwrap();
        params.subject_alt_names.extend([
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
            SanType::IpAddress("fd00::1".parse().unwrap()),
            SanType::URI("spiffe://cell/router".try_into().unwrap()),
            SanType::Rfc822Name("ops@internal".try_into().unwrap()),
        ]);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let names = alternative_names(certificate.der());
        assert_eq!(names, ["router.internal", "10.0.0.1", "fd00::1", "spiffe://cell/router", "ops@internal"]);
    }

    #[test]
    fn rubbish_has_no_names_and_breaks_nothing() {
        let params = CertificateParams::new(vec!["router.internal".into()]).unwrap();
        let whole = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        for length in 0..whole.len() {
            assert!(alternative_names(&whole[..length]).is_empty(), "{length}");
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0xFF;
            let _ = alternative_names(&broken);
        }
    }
}
