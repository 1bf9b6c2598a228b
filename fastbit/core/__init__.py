"No machine learning in it: files, store, processes, threads, text, checks; an empty door, so that the command starts in milliseconds"
