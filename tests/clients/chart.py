"""Renders the Helm chart with the values on standard input (YAML), as Helm 4 does, and checks what comes out of it against
the schemas of Kubernetes. Prints the documents as JSON, or the error of a template."""

import json
import sys

import helm_python
import kubernetes_validate
import yaml

# The oldest that the chart is for, and the newest that is known.
VERSIONS = ["1.27", "1.37"]

chart, values = sys.argv[1], yaml.safe_load(sys.stdin)
report = helm_python.lint(chart, values, strict=True)
messages = [message for message in report["messages"] if message["severity"] > 1]
with helm_python.Chart.load(chart) as loaded:
    try:
        files = loaded.render(values, name="shop", namespace="tools")
    except helm_python.HelmError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit()
assert not messages and not report["errors"], report
documents = []
for name, text in sorted(files.items()):
    if name.endswith(".txt"):
        documents.append({"kind": "Notes", "text": text})
        continue
    for document in yaml.safe_load_all(text):
        if document is None:
            continue
        # What operators define is in no schema of Kubernetes.
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
        documents.append(document)
print(json.dumps({"documents": documents}))
