//! What an address prints, it parses; and what no address can be made of is said, without a panic.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use gracious::Address;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        match text.parse::<Address>() {
            Ok(address) => returns(&address),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        returns(&Address::Custom(text.to_owned()));
    }
    returns(&Address::Abstract(bytes.to_vec()));
    if !bytes.is_empty() {
        returns(&Address::Unix(OsString::from_vec(bytes.to_vec()).into()));
    }
});

fn returns(address: &Address) {
    let printed = address.to_string();
    assert_eq!(printed.parse::<Address>().as_ref().ok(), Some(address), "{printed}");
}
