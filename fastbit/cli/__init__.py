"The `fastbit` command; an empty door, so that the command starts in milliseconds"
