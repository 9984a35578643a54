//! The command lines of the examples.

/// The words of the command line, `defaults` for those that are left out, checked against `usage`:
/// `scope [value|error]` takes one of two words, `quit [ADDRESS]...` any number of them. Where it is
/// something else, `--help` too, the program prints its usage and exits with status 2.
pub(crate) fn words<const N: usize>(usage: &str, defaults: [&str; N]) -> Vec<String> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let places: Vec<_> = usage.split(' ').skip(1).collect();
    let fits = |(index, word): (usize, &String)| match places.get(index) {
        Some(place) if place.contains('|') => {
            place[1..place.len() - 1].split('|').any(|it| it == word)
        }
        Some(_) => !word.starts_with('-'),
        None => usage.ends_with("...") && !word.starts_with('-'),
    };
    if !words.iter().enumerate().all(fits) {
        eprintln!("usage: {usage}");
        std::process::exit(2);
    }
    let missing = defaults.into_iter().skip(words.len());
    words.extend(missing.map(String::from));
    words
}
