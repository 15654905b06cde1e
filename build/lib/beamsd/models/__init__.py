"""What a language model is to the search: what it can read, its cache over the token tree, the prefix it shares."""
