{{- /* The native sidecars of mode standalone, as a list for a pod's initContainers. The shim comes first: Envoy and all
others start when it holds the first certificate. @APP_PORT@ stands for the application's port. */}}
{{- define "sds-shim.containers" -}}
- name: sds-shim
  image: {{ include "sds-shim.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
  args: [serve]
  env:
{{ include "sds-shim.env" . | trim | indent 2 }}
{{- if .Values.metrics.enabled }}
  ports:
  - name: sds-metrics
    containerPort: {{ include "sds-shim.metrics.port" . }}
{{- end }}
{{- with .Values.probes.startup }}
{{- if .enabled }}
  startupProbe:
    exec:
      command: [/usr/local/bin/sds-shim, wait, --timeout, {{ printf "%ds" (max 1 (sub .timeoutSeconds 1)) }}]
    periodSeconds: {{ .periodSeconds }}
    timeoutSeconds: {{ .timeoutSeconds }}
    failureThreshold: {{ .failureThreshold | int64 }}
{{- end }}
{{- end }}
{{- with .Values.probes.readiness }}
{{- if .enabled }}
  readinessProbe:
    exec:
      command: [/usr/local/bin/sds-shim, health]
    periodSeconds: {{ .periodSeconds }}
    timeoutSeconds: {{ .timeoutSeconds }}
    failureThreshold: {{ .failureThreshold }}
{{- end }}
{{- end }}
{{- with .Values.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- with .Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
{{- end }}
  volumeMounts:
  - name: sds-shim-socket
    mountPath: /var/run/secrets/workload-spiffe-uds
  - name: sds-shim-token
    mountPath: /var/run/secrets/tokens
    readOnly: true
  - name: sds-shim-ca-root
    mountPath: /var/run/secrets/istio
    readOnly: true
{{- if .Values.workloadAPI.enabled }}
  - name: sds-shim-workload-api
    mountPath: /run/spiffe
{{- end }}
{{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
{{- end }}
- name: sds-shim-envoy
  image: {{ .Values.proxy.image | quote }}
  imagePullPolicy: {{ .Values.proxy.pullPolicy }}
  restartPolicy: Always
  command:
    {{- toYaml .Values.proxy.command | nindent 2 }}
  args:
  - --config-yaml
  - {{ include "sds-shim.envoy" . | quote }}
  - --service-node
  - $(POD_NAME).$(POD_NAMESPACE)
  - --service-cluster
  - $(SERVICE_ACCOUNT).$(POD_NAMESPACE)
  - --concurrency
  - {{ .Values.proxy.concurrency | toString | quote }}
  - --log-level
  - {{ .Values.proxy.logLevel }}
  - --disable-hot-restart
  env:
{{ include "sds-shim.names" . | indent 2 }}
  ports:
  - name: sds-mtls
    containerPort: {{ .Values.proxy.inboundPort }}
  - name: sds-health
    containerPort: {{ .Values.proxy.healthPort }}
  startupProbe:
    httpGet:
      path: /ready
      port: {{ .Values.proxy.healthPort }}
    periodSeconds: 1
    timeoutSeconds: 3
    # A day: it waits for the first certificate where the shim's own probe is off.
    failureThreshold: 86400
  readinessProbe:
    httpGet:
      path: /ready
      port: {{ .Values.proxy.healthPort }}
    periodSeconds: 10
    timeoutSeconds: 3
{{- with .Values.proxy.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- with .Values.proxy.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
{{- end }}
  volumeMounts:
  - name: sds-shim-socket
    mountPath: /var/run/secrets/workload-spiffe-uds
  - name: sds-shim-config
    mountPath: /etc/sds-shim
    readOnly: true
  - name: sds-shim-admin
    mountPath: /var/run/sds-shim-envoy
  # Where the token for the API server would be: who faces the network does not get it.
  - name: sds-shim-nothing
    mountPath: /var/run/secrets/kubernetes.io/serviceaccount
    readOnly: true
{{- end }}

{{- define "sds-shim.names" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: SERVICE_ACCOUNT
  valueFrom:
    fieldRef:
      fieldPath: spec.serviceAccountName
{{- end }}

{{- /* The shim's variables: those that follow from other values, unless `env` has them, and those of `env`. */}}
{{- define "sds-shim.variables" -}}
{{- $set := dict }}
{{- if ne .Values.trustDomain "cluster.local" }}{{ $_ := set $set "TRUST_DOMAIN" .Values.trustDomain }}{{ end }}
{{- if ne .Values.ca.audience "istio-ca" }}{{ $_ := set $set "SDS_SHIM_TOKEN_AUDIENCE" .Values.ca.audience }}{{ end }}
{{- if .Values.ca.address }}{{ $_ := set $set "CA_ADDR" .Values.ca.address }}{{ end }}
{{- if .Values.ca.serverName }}{{ $_ := set $set "ISTIOD_SAN" .Values.ca.serverName }}{{ end }}
{{- if .Values.developmentCA.enabled }}
{{- $_ := set $set "CA_ADDR" (printf "%s.%s.svc:15012" (include "sds-shim.developmentCA" .) .Release.Namespace) }}
{{- $_ := set $set "ISTIOD_SAN" "istiod.istio-system.svc" }}
{{- end }}
{{- if .Values.metrics.enabled }}
{{- $address := printf "%s:%s" (ternary "[::]" "0.0.0.0" (contains ":" .Values.proxy.bindAddress)) (include "sds-shim.metrics.port" .) }}
{{- if .Values.metrics.tlsClients }}
{{- $_ := set $set "SDS_SHIM_ADMIN_TLS" $address }}
{{- $_ := set $set "SDS_SHIM_ADMIN_TLS_CLIENTS" (join "," .Values.metrics.tlsClients) }}
{{- else }}
{{- $_ := set $set "SDS_SHIM_ADMIN" $address }}
{{- end }}
{{- end }}
{{- with .Values.workloadAPI }}
{{- if .enabled }}{{ $_ := set $set "SDS_SHIM_WORKLOAD_API" "unix:/run/spiffe/agent.sock" }}{{ end }}
{{- if .uids }}
{{- $uids := list }}
{{- range .uids }}{{ $uids = append $uids (. | int64 | toString) }}{{ end }}
{{- $_ := set $set "SDS_SHIM_WORKLOAD_API_UIDS" (join "," $uids) }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.env }}{{ $_ := set $set $name $value }}{{ end }}
{{- toYaml $set }}
{{- end }}

{{- define "sds-shim.env" -}}
{{- $set := include "sds-shim.variables" . | fromYaml }}
{{- range (include "sds-shim.names" . | fromYamlArray) }}
{{- if not (hasKey $set .name) }}
{{ list . | toYaml }}
{{- end }}
{{- end }}
{{- range $name, $value := $set }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- /* The volumes of those containers, as a list for a pod's volumes. */}}
{{- define "sds-shim.volumes" -}}
- name: sds-shim-socket
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.socket.sizeLimit }}
- name: sds-shim-token
  projected:
    sources:
    - serviceAccountToken:
        path: istio-token
        audience: {{ .Values.ca.audience }}
        expirationSeconds: {{ .Values.ca.tokenSeconds | int64 }}
- name: sds-shim-ca-root
  projected:
    sources:
{{- with .Values.ca.root }}
{{- if or $.Values.developmentCA.enabled (eq .source "pem") }}
    - configMap:
        name: {{ include "sds-shim.name" $ }}
        items:
        - key: root-cert.pem
          path: root-cert.pem
{{- else if eq .source "clusterTrustBundle" }}
    - clusterTrustBundle:
{{- if .clusterTrustBundle.name }}
        name: {{ .clusterTrustBundle.name | quote }}
{{- else }}
        signerName: {{ .clusterTrustBundle.signerName | quote }}
        # Without a selector none is taken.
        labelSelector: {}
{{- end }}
        path: root-cert.pem
{{- else }}
    - configMap:
        name: {{ .configMap.name }}
        items:
        - key: {{ .configMap.key }}
          path: root-cert.pem
{{- end }}
{{- end }}
- name: sds-shim-config
  configMap:
    name: {{ include "sds-shim.name" . }}
    items:
    - key: listeners-{{ include "sds-shim.envoy.ports" . }}.json
      path: listeners.json
    - key: clusters.json
      path: clusters.json
- name: sds-shim-admin
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
- name: sds-shim-nothing
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- if .Values.workloadAPI.enabled }}
- name: sds-shim-workload-api
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
