"""The command `batch`: many pictures in many styles on one ComfyUI or several, interrupted and continued at will.

How each picture's features are read once, for ten thousand photos and fifty styles, with memory that does not grow:

* A worker is one ComfyUI. It takes the contents one after another (or some at a time, --batch) and gives each all its styles
  before the next. So what a content costs once, its upload, latent and features, stays in ComfyUI's own cache of node
  results, of which the simplest kind keeps just the nodes of the last run. No option of the server is needed.
* A style comes back once per content, too late for that cache, and fifty styles' features in memory would be gigabytes. So
  they are read once per worker, kept in a file on its disk by Save Features, and the graph that runs has Load Features in
  their place. That file is read once per result, which is nothing beside sampling.

Together a worker extracts as many times as it sees different pictures. What is done is told by the files of results: each is
written beside its place and then moved there, so it is whole or not there; the report (JSON lines) says how it was made.

    rows    what is to be made: folders, globs and CSV files become rows with pictures, settings and a name
    graph   the workflow of a row: only what the result needs, features from files, several contents in one
    report  report.jsonl: what was done, with which settings, and where a call goes on
    files   results as PNG, WebP and JPEG, with or without the workflow in them
    worker  one ComfyUI that makes rows
    command the options, the plan, the workers together, the exit code
"""
