{{- define "messagebusd.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "messagebusd.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "messagebusd.labels" -}}
{{ include "messagebusd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "messagebusd.secret" -}}
{{- if .Values.existingSecret -}}
{{- .Values.existingSecret -}}
{{- else -}}
{{- if not (index .Values.secrets "api-key") -}}
{{- fail "the API needs a key: set existingSecret, or secrets.api-key (for example mb_ and `openssl rand -hex 24`)" -}}
{{- end -}}
{{- include "messagebusd.name" . -}}
{{- end -}}
{{- end -}}
