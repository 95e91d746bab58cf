{{- define "weft.inject" -}}
sidecar_image: {{ .Values.sidecar.image | toJson }}
redirect_image: {{ .Values.redirect.image | toJson }}
image_pull_policy: {{ .Values.image_pull_policy }}
redirect: {{ .Values.redirect.default }}
control_plane: "https://control.weft.svc:15010"
trust_domain: {{ .Values.trust_domain | toJson }}
otlp: {{ .Values.otlp | toJson }}
sample_ratio: {{ .Values.sample_ratio | float64 | toJson }}
log_format: {{ .Values.log_format }}
resources:
  requests: { cpu: {{ .Values.sidecar.cpu_request | toString | quote }}, memory: {{ .Values.sidecar.memory_request | toString | quote }} }
  limits: { cpu: {{ .Values.sidecar.cpu_limit | toString | quote }}, memory: {{ .Values.sidecar.memory_limit | toString | quote }} }
{{- end }}
