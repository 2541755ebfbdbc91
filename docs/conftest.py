"""Of the documentation, the tests run the pages, and neither their pictures nor what is built."""

collect_ignore_glob = ["*.py", "_build/*", "auto_examples/*", "figures/*", "generated/*"]
