{{- define "larder.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) -}}{{- $name = printf "%s-%s" $name .Chart.Name -}}{{- end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "larder.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "larder.labels" -}}
{{ include "larder.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "larder.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end }}

{{- define "larder.tokenSecret" -}}
{{- .Values.cluster.tokenSecret.name | default (printf "%s-cluster" (include "larder.name" .)) -}}
{{- end }}

{{- define "larder.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "larder.name" .) -}}
{{- end }}

{{- define "larder.scheme" -}}
{{- if .Values.tls.secretName }}https{{ else }}http{{ end -}}
{{- end }}

{{- /* What cannot be meant. */ -}}
{{- define "larder.check" -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.cluster.enabled) -}}
{{- fail "replicas: more than one needs cluster.enabled=true and index.url (docs/helm.md)" -}}
{{- end -}}
{{- if and .Values.cluster.enabled (not .Values.index.url) -}}
{{- fail "index.url: replicas find one another by an index in PostgreSQL: postgres://larder@db.example/larder" -}}
{{- end -}}
{{- if and .Values.metrics.enabled (not .Values.metrics.readers) -}}
{{- fail "metrics.readers: name the networks that may read metrics, such as [10.0.0.0/8]" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.serviceMonitor.enabled needs metrics.enabled" -}}
{{- end -}}
{{- if and .Values.nodes.enabled (not .Values.nodes.url) (not .Values.nodes.tier.enabled) -}}
{{- fail "nodes.url: nodes do not know the names of services; write for example http://127.0.0.1:30500 with service.nodePort 30500, or use nodes.tier" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.host: it is missing" -}}
{{- end -}}
{{- end }}

{{- define "larder.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
