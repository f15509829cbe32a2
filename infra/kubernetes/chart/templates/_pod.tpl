{{/* Labels of a process. Arguments: component, group (of workers). */}}
{{- define "penstock.labels" -}}
app.kubernetes.io/name: penstock
app.kubernetes.io/component: {{ .component }}
{{- with .group }}
queue-group: {{ . }}
{{- end }}
{{- end }}

{{/* Variables from the shared Secret. Arguments: secret, required and optional keys. */}}
{{- define "penstock.secrets" -}}
{{- $secret := .secret -}}
{{- range .required }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ . }}}}
{{- end }}
{{- range .optional }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ . }}, optional: true}}
{{- end }}
{{- end }}

{{/* A Deployment. Arguments: root, name, component, group, replicas, args, port, paths (of the probes),
required and optional (keys of the shared Secret), env, envFrom (a Secret), resources, shareProcesses, preStop, folders
(name → path of an emptyDir of 256 MiB). */}}
{{- define "penstock.deployment" -}}
{{- $root := .root -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: penstock-{{ .name }}
  labels:
    {{- include "penstock.labels" . | nindent 4 }}
spec:
  {{- if ne (toString .replicas) "" }}
  replicas: {{ .replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  strategy:
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  selector:
    matchLabels:
      {{- include "penstock.labels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "penstock.labels" . | nindent 8 }}
      annotations:
        checksum/config: {{ $root.Values.config | sha256sum }}
        {{- if ne .component "flower" }}
        prometheus.io/scrape: "true"
        prometheus.io/port: {{ .port | quote }}
        {{- end }}
    spec:
      serviceAccountName: penstock
      automountServiceAccountToken: false
      # A Service named penstock-http would otherwise set PENSTOCK_HTTP_PORT, and one named flower FLOWER_PORT.
      enableServiceLinks: false
      # Above grace_seconds (30), which is how long running jobs may take to finish.
      terminationGracePeriodSeconds: 45
      {{- if .shareProcesses }}
      # Kubernetes' pause process reaps what child processes of isolated handlers leave behind.
      shareProcessNamespace: true
      {{- end }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        seccompProfile: {type: RuntimeDefault}
      {{- with $root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $root.Values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $root.Values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {app.kubernetes.io/name: penstock}
          matchLabelKeys: [pod-template-hash]
      containers:
        - name: penstock
          image: {{ include "penstock.image" $root }}
          args:
            {{- toYaml .args | nindent 12 }}
          env:
            - {name: PENSTOCK_CONFIG, value: /etc/penstock/penstock.toml}
            {{- with .env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
            {{- include "penstock.secrets" (dict "secret" $root.Values.secrets.shared "required" .required "optional" .optional) | nindent 12 }}
            {{- with .moreSecrets }}
            {{- include "penstock.secrets" . | nindent 12 }}
            {{- end }}
            {{- with $root.Values.env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with .envFrom }}
          envFrom:
            - secretRef: {name: {{ . }}, optional: true}
          {{- end }}
          ports:
            - {name: http, containerPort: {{ .port }}}
          startupProbe:
            httpGet: {path: {{ .paths.startup }}, port: http}
            periodSeconds: 5
            failureThreshold: 24
          livenessProbe:
            httpGet: {path: {{ .paths.live }}, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
          readinessProbe:
            httpGet: {path: {{ .paths.ready }}, port: http}
            periodSeconds: 5
            timeoutSeconds: 5
          {{- if .preStop }}
          # Until load balancers have noticed that the pod ends.
          lifecycle:
            preStop:
              sleep: {seconds: {{ .preStop }}}
          {{- end }}
          securityContext:
            {{- include "penstock.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: config, mountPath: /etc/penstock, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            {{- range $name, $path := .folders }}
            - {name: {{ $name }}, mountPath: {{ $path }}}
            {{- end }}
          resources:
            {{- toYaml .resources | nindent 12 }}
      volumes:
        - name: config
          configMap: {name: penstock}
        - name: tmp
          emptyDir: {sizeLimit: 1Gi}
        {{- range $name, $path := .folders }}
        - name: {{ $name }}
          emptyDir: {sizeLimit: 256Mi}
        {{- end }}
{{- end }}

{{- define "penstock.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
